"""The ComfyUI side: each node is a schema, a conversion and a call into `tokenopt_core`."""

from comfy_api.latest import ComfyExtension, io

from . import (
    canvas,
    finish,
    folders,
    importance,
    judging,
    losses,
    models,
    optimize,
    plot,
    refine,
    regularizers,
    reset,
    samples,
    search,
    seeds,
    tokenizer,
    tokens,
)


class TokenOptExtension(ComfyExtension):
    """All nodes of the pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        folders.register()
        finish.register()
        modules = (
            models,
            samples,
            tokenizer,
            tokens,
            losses,
            regularizers,
            reset,
            optimize,
            plot,
            canvas,
            importance,
            search,
            refine,
            seeds,
            judging,
        )
        return [node for module in modules for node in module.NODES]
