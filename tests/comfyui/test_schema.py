"""What every node, present and future, owes the person who wires it."""

import ast
import dataclasses
import inspect
import re
from collections.abc import Iterator
from typing import Any

import pytest

from devtools.paths import ROOT

pytestmark = pytest.mark.comfyui

SOURCES = sorted((ROOT / "nodes").glob("*.py"))


@pytest.fixture
def schemas(pack) -> dict[str, Any]:
    """Each node's schema by its id."""
    assert pack.classes, "the pack has no nodes"
    return {name: cls.GET_SCHEMA() for name, cls in pack.classes.items()}


@pytest.fixture
def inputs(schemas) -> list[tuple[str, Any]]:
    """Every input of every node, with a name for messages."""
    return [(f"{name}.{item.id}", item) for name, schema in schemas.items() for item in schema.inputs]


def widgets(inputs: list[tuple[str, Any]], kind: str) -> Iterator[tuple[str, Any]]:
    """The inputs of one of ComfyUI's types, such as "FLOAT"; there must be some."""
    found = [(name, item) for name, item in inputs if item.get_io_type() == kind]
    assert found
    yield from found


def calls_of_schema() -> Iterator[tuple[str, ast.Call]]:
    """Each `io.Schema(...)` in the sources."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "Schema":
                yield f"{path.name}:{node.lineno}", node


def test_ids_and_names_are_the_packs_own(schemas) -> None:
    for name, schema in schemas.items():
        assert name == schema.node_id
        assert name.startswith("TokenOpt")
        assert schema.display_name and not schema.display_name.startswith("TokenOpt")
        assert schema.category.split("/")[0] == "TokenOpt"


def test_descriptions_are_sentences(schemas) -> None:
    bad = [name for name, schema in schemas.items() if not (schema.description or "").strip().endswith(".")]
    assert not bad


def test_every_input_has_a_tooltip_that_is_a_sentence(inputs) -> None:
    bad = [name for name, item in inputs if not (item.tooltip or "").strip().endswith(".")]
    assert not bad


def test_every_float_has_limits_and_a_step_that_reaches_its_default(inputs) -> None:
    for name, item in widgets(inputs, "FLOAT"):
        assert None not in (item.min, item.max, item.step), name
        assert item.min <= item.default <= item.max, name
        assert item.min + item.step <= item.max, name
        # the frontend rounds to the step unless told otherwise
        places = len(f"{item.round or item.step:.10f}".rstrip("0").split(".")[1])
        assert round(item.default, places) == item.default, f"{name}: {item.default} is no multiple of the step"


def test_every_float_tells_what_its_least_value_does(inputs) -> None:
    bad = [name for name, item in widgets(inputs, "FLOAT") if not mentions(item.tooltip, item.min)]
    assert not bad


def mentions(text: str, value: float) -> bool:
    """Whether a text speaks of this number; of a value just above 0 it may say "Near 0"."""
    number = re.search(rf"(?<![\w.]){re.escape(f'{value:g}')}(?!\.?\d)", text)
    return bool(number) or (0 < value < 0.01 and "Near 0" in text)


def test_every_whole_number_has_limits(inputs) -> None:
    for name, item in widgets(inputs, "INT"):
        assert None not in (item.min, item.max), name
        assert item.min <= item.default <= item.max, name


def test_every_choice_has_options_and_a_default_among_them(inputs) -> None:
    for name, item in widgets(inputs, "COMBO"):
        assert item.options, name
        assert item.default is None or item.default in item.options, name


def test_optional_inputs_come_last(schemas) -> None:
    for name, schema in schemas.items():
        order = [bool(item.optional) for item in schema.inputs]
        assert order == sorted(order), name


def test_inputs_and_outputs_have_different_ids(schemas) -> None:
    for name, schema in schemas.items():
        ids = [item.id for item in (*schema.inputs, *schema.outputs)]
        assert len(set(ids)) == len(ids), name
        assert None not in ids, f"{name}: an output has no id"


def test_execute_takes_what_the_schema_declares(pack, schemas) -> None:
    for name, schema in schemas.items():
        code = inspect.unwrap(pack.classes[name].execute.__func__).__code__
        taken = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
        assert set(taken) == {item.id for item in schema.inputs}, name


def test_no_node_is_asynchronous(pack) -> None:
    """An await inside the gradient context would leak it into another node."""
    assert [name for name, cls in pack.classes.items() if cls.FUNCTION != "EXECUTE_NORMALIZED"] == []


def test_schemas_use_only_keywords_of_the_oldest_supported_comfyui(pack) -> None:
    """One unknown keyword keeps ComfyUI from loading any node of the pack."""
    from comfy_api.latest import io

    known = {field.name for field in dataclasses.fields(io.Schema)} - NEWER
    calls = list(calls_of_schema())
    assert len(calls) == len(pack.classes)
    unknown = {where: sorted({k.arg for k in call.keywords} - known) for where, call in calls}
    assert not {where: names for where, names in unknown.items() if names}


# not in 0.3.75, where newer versions have them
NEWER = {"search_aliases", "is_dev_only", "essentials_category", "has_intermediate_output", "price_badge"}


def test_every_node_has_a_help_page_that_names_every_input_and_output(schemas) -> None:
    missing = []
    for name, schema in schemas.items():
        page = ROOT / "web" / "docs" / f"{name}.md"
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        missing += [page.name] if not text else []
        named = [item.id for item in schema.inputs] + [item.display_name or item.id for item in schema.outputs]
        missing += [f"{page.name}: {item}" for item in named if text and item not in text]
    assert not missing


def test_no_help_page_is_left_over(schemas) -> None:
    assert {page.stem for page in (ROOT / "web" / "docs").glob("*.md")} <= set(schemas)
