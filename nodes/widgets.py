"""Inputs that several nodes have."""

from __future__ import annotations

from comfy_api.latest import io


def feather(tooltip: str = "Softness of the mask's edge in pixels. 0: as the mask is.") -> io.Float.Input:
    """How soft a mask's edge is made."""
    return io.Float.Input("feather", default=2.0, min=0.0, max=256.0, step=0.5, tooltip=tooltip)


def hole(tooltip: str = "White: to be invented. Black: known.", optional: bool = False) -> io.Mask.Input:
    """The mask of what is to be invented."""
    return io.Mask.Input("mask", optional=optional, tooltip=tooltip)


def seed(tooltip: str, default: int = 0) -> io.Int.Input:
    """Of random numbers; each run may take another."""
    return io.Int.Input("seed", default=default, min=0, max=2**63 - 1, control_after_generate=True, tooltip=tooltip)


def prompt(tooltip: str) -> io.String.Input:
    """What a picture is to show."""
    tooltip += " Several with weights: a red apple:2 | at night."
    return io.String.Input("prompt", multiline=True, default="", tooltip=tooltip)


def folder(also: str = "") -> io.String.Input:
    """Pictures on the disk, see `input_folder`."""
    tooltip = (
        "A folder inside ComfyUI's input folder, such as photos/beach: all pictures in it and in its folders."
        f"{also} Empty: none."
    )
    return io.String.Input("folder", default="", tooltip=tooltip)
