"""TokenOpt for ComfyUI: edit, inpaint and generate pictures by optimising the tokens of a 1D image tokenizer."""

from typing import Any

WEB_DIRECTORY = "./web"


async def comfy_entrypoint() -> Any:
    """What ComfyUI calls; imports happen here, so that the package imports without ComfyUI."""
    from .nodes import TokenOptExtension

    return TokenOptExtension()
