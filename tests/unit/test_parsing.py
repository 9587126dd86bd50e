"""Whatever stands in a file, it is read or refused in a sentence, at once."""

import contextlib
import json
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.zoo import entries
from reproduce import parsing, typed_yaml
from reproduce.config.compose import compose
from reproduce.errors import UserError
from reproduce.files import read_json, write_atomic
from reproduce.harness import results
from reproduce.harness.spec import baseline, canaries, claims, golden, tables
from reproduce.parsing import parse_json, parse_yaml

BOMB = "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: 1\nb: 2\na: 3\n", "the key 'a' stands twice, again in line 3"),
        ("a: {b: 1, b: 2}", "the key 'b' stands twice"),
        ("a: .nan", r".nan in line 1 is no finite number"),
        ("a: -.inf", "no finite number"),
        ("a: 1.0e+999", "no finite number"),
        (f"a: {'9' * 400}", "a number has 400 digits"),
        (f"a: {'9' * 5000}", "a number has 5000 digits"),
        (BOMB, "aliases multiply"),
        ("a: &a [*a]", "an alias stands for what it is part of"),
        ("[" * 100_000, "nested too deeply"),
        ("a: \0", "unacceptable character"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("? [1]\n: 2", "unhashable key"),
        ("a: [", "expected"),
    ],
)
def test_yaml_is_refused(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_yaml(text)


def test_yaml_that_is_right_is_read() -> None:
    assert parse_yaml("a: &x {b: 1, c: 2.5}\nd: {<<: *x, b: 3}\n") == {"a": {"b": 1, "c": 2.5}, "d": {"b": 3, "c": 2.5}}
    nested = "a: &a {x: 1}\nouter: {b: &b {<<: *a, x: 2}}\nc: {<<: *b}\n"
    assert parse_yaml(nested) == {"a": {"x": 1}, "outer": {"b": {"x": 2}}, "c": {"x": 2}}
    assert parse_yaml("") is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 2}', "the key 'a' stands twice"),
        ('{"a": NaN}', "NaN is no finite number"),
        ('{"a": -Infinity}', "no finite number"),
        ('{"a": 1e999}', "no finite number"),
        (f'{{"a": {"9" * 400}}}', "400 digits"),
        ("[" * 100_000, "nested too deeply"),
        ("", "Expecting value"),
    ],
)
def test_json_is_refused(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_json(text)
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=says):
        read_json(tmp_path / "x.json")


def test_halves_of_characters_are_written_somehow(tmp_path: Path) -> None:
    write_atomic(tmp_path / "x", json.loads('"a \\ud800 b"'))
    assert (tmp_path / "x").read_text() == "a ? b"


@pytest.mark.parametrize(
    "line", ['{"step": NaN, "loss": 1}', f'{{"step": {"9" * 400}, "loss": 1}}', "[]", "3", "\ud800"]
)
def test_a_line_of_metrics_that_is_no_step_is_passed_over(tmp_path: Path, line: str) -> None:
    good = '{"step": 1, "num_steps": 2, "loss": 4.0}'
    (tmp_path / "metrics.jsonl").write_bytes(f"{good}\n{line}\n".encode(errors="surrogatepass"))
    assert results.curves(tmp_path / "metrics.jsonl") == {"loss": [(1.0, 4.0)]}
    assert results.last_progress(tmp_path) == (1, 2)


def test_a_failure_of_another_form_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "failure.json").write_text('{"status": 3, "message": ["a"]}')
    found = results.load_failure(tmp_path / "failure.json")
    assert found is not None and "is damaged" in found["message"]


FILES: dict[str, Callable[[], Any]] = {
    "paper/table9.yaml": lambda: tables.load("table9", "paper"),
    "paper/table3.yaml": lambda: tables.load("table3", "paper"),
    "claims.yaml": claims.load,
    "canaries.yaml": lambda: list(canaries.targets(canaries.load())),
    "margins.yaml": tables.public_weights_margins,
    "smoke/recorded.yaml": lambda: baseline.load("smoke"),
    "golden/smoke_runs.json": lambda: golden.load_runs("smoke"),
}
PIECES = [
    "",
    "-1",
    "null",
    "[]",
    "{}",
    "''",
    ".nan",
    "9" * 400,
    "2026-01-01",
    "\0",
    "\t",
    "*x",
    "true",
    ": ",
    "\n  - ",
    "\ud800",
]


def mutated(text: str, seed: int) -> str:
    """Cut out or replace one to three places of a text."""
    rng = random.Random(seed)
    for _ in range(rng.randint(1, 3)):
        start = rng.randrange(len(text))
        end = min(len(text), start + rng.choice([0, 1, 5, 40]))
        text = text[:start] + rng.choice(PIECES) + text[end:]
    return text


@pytest.mark.parametrize("name", FILES)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_a_mutated_file_is_read_or_refused(name: str, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A place in a file is cut out or replaced; nothing but `UserError` may come of it."""
    source = Path(__file__).parents[2] / "tables"
    text = mutated((source / name).read_text(), seed)
    folder = tmp_path_factory.mktemp("tables")
    for path in ("paper", "smoke", "golden"):
        shutil.copytree(source / path, folder / path)
    for path in ("claims.yaml", "canaries.yaml", "margins.yaml"):
        shutil.copy(source / path, folder)
    (folder / name).write_bytes(text.encode(errors="surrogatepass"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "TABLES_DIR", folder)
        with contextlib.suppress(UserError):
            FILES[name]()
    shutil.rmtree(folder)


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_mutated_zoo_is_read_or_refused(seed: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        zoo = Path(folder, "released.yaml")
        zoo.write_bytes(mutated(entries.ZOO.read_text(), seed).encode(errors="surrogatepass"))
        with contextlib.suppress(UserError):
            entries.load_entries(zoo)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("defaults: {}", "needs a value for 'checkpoints'"),
        ("defaults: {}\ncheckpoints: {a: {url: 3}}", "checkpoints.a"),
        ("defaults: {}\ncheckpoints: {a: {colour: red}}", "there is no key 'colour' in checkpoints.a"),
        ("defaults: {}\ncheckpoints: {a: {url: x}, a: {url: y}}", "the key 'a' stands twice"),
    ],
)
def test_a_zoo_of_another_form_is_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "released.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        entries.load_entries(tmp_path / "released.yaml")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefg", "bcdefgh", strict=True)
)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (BOMB, "aliases multiply"),
        ("imagenet: {root: a, root: b}", "the key 'root' stands twice"),
        ("imagenet: " + "[" * 10_000, "nested too deeply"),
        ("imagenet: {root: \0}", "can't be|no YAML file"),
    ],
)
def test_a_data_config_that_nobody_can_read_is_a_sentence(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=says):
        compose("pretrain", [f"data={tmp_path / 'mine.yaml'}", "scale=smoke"])


def test_what_has_too_many_values_is_not_read_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    read, original = [0], yaml.parse

    def counted(*arguments: Any, **options: Any) -> Iterator[yaml.Event]:
        for event in original(*arguments, **options):
            read[0] += 1
            yield event

    monkeypatch.setattr(yaml, "parse", counted)
    with pytest.raises(ValueError, match="more than 200,000 values"):
        parse_yaml(f"[{'1,' * 2_000_000}1]")
    assert read[0] <= parsing.MAX_EVENTS + 2


def test_the_last_of_many_keys_may_be_the_one_that_stands_twice() -> None:
    """Found in one pass: counting each key by itself took a minute."""
    keys = "".join(f'"{number}": 1, ' for number in range(60_000))
    with pytest.raises(ValueError, match="the key '59999' stands twice"):
        parse_json(f'{{{keys}"59999": 2}}')


@pytest.mark.parametrize("text", ["{1: a, 0x1: b}", "{yes: a, true: b}", "{0.5: a, .5: b}", "{null: a, ~: b}"])
def test_a_key_that_stands_twice_in_other_words_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="stands twice, spelled otherwise"):
        parse_yaml(text)


@pytest.mark.parametrize("key", ["20", "yes", "null", "2026-01-01"])
def test_a_key_of_another_type_is_refused(key: str) -> None:
    with pytest.raises(UserError, match=r"mine\.yaml: a key of margins should be of type str, but it is"):
        typed_yaml.convert(dict[str, dict[str, float]], parse_yaml(f"{key}: {{x: 1}}"), "mine.yaml", "margins")


@pytest.mark.parametrize("text", ['!!float ""', '!!int ""'])
def test_an_empty_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="can't be read"):
        parse_yaml(text)
