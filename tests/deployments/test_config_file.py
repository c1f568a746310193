"""serve_config.yaml as a whole: the shipped one is fine, and each kind of mistake is named with its line."""

import re
from pathlib import Path

import pytest
import yaml

from deployments.config_file import DEFAULT_CONFIG, load, read_args
from dspark.config import ServeArgs
from dspark.errors import ConfigError

SHIPPED = Path(__file__).resolve().parents[2] / "serve_config.yaml"


def changed(tmp_path: Path, old: str, new: str) -> Path:
    """The shipped file with one change."""
    text = SHIPPED.read_text()
    assert old in text
    path = tmp_path / "changed.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


def test_the_shipped_file_is_fine() -> None:
    file = load(SHIPPED)
    assert file.args["dspark"].target.model == "demo:target"
    assert file.schema.http_options.host == "127.0.0.1"


def test_without_a_file_the_shipped_pair_is_served() -> None:
    assert load(None).args["dspark"] == ServeArgs()


@pytest.mark.parametrize("key", ["http_options", "grpc_options"])
def test_the_built_in_default_and_the_shipped_file_agree(key: str) -> None:
    assert yaml.safe_load(DEFAULT_CONFIG)[key] == yaml.safe_load(SHIPPED.read_text())[key]


@pytest.mark.parametrize(
    ("old", "new", "stands_at", "message"),
    [
        ("http_options:", "http_optoins:", "http_optoins", "http_optoins: unknown key; did you mean 'http_options'?"),
        ("  port: 8000", "  prot: 8000", "prot", "http_options.prot: unknown key; did you mean 'port'?"),
        ("max_depth: 7", "max_dpeth: 4", "max_dpeth", "args.drafter.max_dpeth: unknown key; did you mean 'max_depth'?"),
        ("max_depth: 7", "max_depth: 65", "max_depth", "args.drafter.max_depth: Input should be less than or equal to 64"),
        ("kind: block", "kind: magic", "kind: magic", "args.drafter.kind: Input should be 'none'"),
        ("kind: block", "kind: none\n        kind: none", "kind: none", "args.drafter.kind: this key stands twice"),
        ("{min_replicas: 1, max", "{min_replicas: 2, max", "min_replicas: 2", "min_replicas (2) is above max_replicas (1)"),
        ("request_timeout_s: 600", "request_timeout_s: 700", "args:", "is below limits.request_timeout_s (700.0)"),
        ("request_timeout_s: 630", "request_timeout_s: 60", "_s: 60", "http_options.request_timeout_s: 60.0 is below the application"),
        ("pb2_grpc.add", "pb2_grpc.ad", "pb2_grpc.ad", "cannot be imported"),
        ("name: dspark", "name: dspark\n    deploymens: []", "deploymens", "unknown key; did you mean 'deployments'?"),
        ("applications:", "applicatoins:", "applicatoins", "unknown key; did you mean 'applications'?"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, old: str, new: str, stands_at: str, message: str) -> None:
    path = changed(tmp_path, old, new)
    with pytest.raises(ConfigError) as caught:
        load(path)
    (told,) = [line for line in str(caught.value).splitlines() if message in line]
    number = int(told.removeprefix(f"{path}:").split(":")[0])
    assert stands_at in path.read_text().splitlines()[number - 1]


@pytest.mark.parametrize(
    ("args", "stands_at", "message"),
    [
        ("drafter: {}\n      drafters: {code: {}}", "args:", "drafter and drafters are both given"),
        ("drafters: {Code: {}}", "drafters:", "args.drafters: 'Code' is no name for a drafter: 1 to 32 of a-z 0-9 _ -"),
        ("drafters: {none: {}}", "drafters:", "args.drafters: 'none' is no name for a drafter"),
        (f"drafters: {{{'x' * 33}: {{}}}}", "drafters:", "is no name for a drafter"),
        ("drafters: {idle: {kind: none}}", "drafters:", "args.drafters: 'idle' has the kind 'none'; leave it out"),
        (
            "drafters:\n        code: {}\n        rest:\n          max_dpeth: 3",
            "max_dpeth",
            "args.drafters.rest.max_dpeth: unknown key; did you mean 'max_depth'?",
        ),
        ("drafters:\n        code:\n          max_depth: 65", "max_depth", "args.drafters.code.max_depth: Input should be less than"),
        (
            "drafters: {a: {}, l: {kind: lookup}}\n      draft_deployments: {l: {}}",
            "args:",
            "draft_deployments names 'l'; drafters that run a model are 'a'",
        ),
        ("draft_deployments: {code: {}}", "args:", "draft_deployments names 'code'; drafters that run a model are 'default'"),
        (
            "draft_deployments:\n        default:\n          max_lease: 3",
            "max_lease",
            "args.draft_deployments.default.max_lease: unknown key; did you mean 'max_leases'?",
        ),
    ],
)
def test_a_mistake_about_several_drafters_is_named_with_its_line(tmp_path: Path, args: str, stands_at: str, message: str) -> None:
    path = tmp_path / "serve.yaml"
    path.write_text(f"applications:\n  - name: dspark\n    import_path: deployments.app:build\n    args:\n      {args}\n")
    with pytest.raises(ConfigError) as caught:
        load(path)
    (told,) = [line for line in str(caught.value).splitlines() if message in line]
    number = int(told.removeprefix(f"{path}:").split(":")[0])
    assert stands_at in path.read_text().splitlines()[number - 1]


def test_drafters_by_name_with_pools_of_their_own_are_fine() -> None:
    args = read_args(
        {
            "drafters": {"general": {}, "code-2": {"kind": "block", "model": "x/y"}, "copy": {"kind": "lookup"}},
            "draft_deployment": {"max_leases": 5},
            "draft_deployments": {"code-2": {"max_leases": 7}},
        }
    )
    assert list(args.named_drafters) == ["general", "code-2", "copy"]
    assert {name: options.max_leases for name, options in args.draft_pools.items()} == {"general": 5, "code-2": 7}


def test_the_documented_example_of_several_drafters_is_fine() -> None:
    (example,) = re.findall(r"```yaml\n(.*?)```", (SHIPPED.parent / "docs" / "api.md").read_text(), re.DOTALL)
    args = read_args(yaml.safe_load(example)["args"])
    assert list(args.named_drafters) == ["general", "code", "copy"]
    assert args.draft_pools["code"].autoscaling.max_replicas == 4


def test_one_drafter_has_the_name_default_and_none_is_nobody() -> None:
    assert list(ServeArgs().named_drafters) == ["default"]
    assert read_args({"drafter": {"kind": "none"}}).named_drafters == {}
    assert read_args({"drafter": {"kind": "lookup"}}).draft_pools == {}


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    path = changed(tmp_path, "max_depth: 7", "max_dpeth: 4\n        max_nods: 3\n        num_thread: 2")
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert len(str(caught.value).splitlines()) == 3


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="a mapping with `applications:`"):
        load(tmp_path / "empty.yaml")


def test_the_builder_takes_a_dictionary_or_the_model() -> None:
    assert read_args({"drafter": {"kind": "lookup"}}) == read_args(ServeArgs.model_validate({"drafter": {"kind": "lookup"}}))


def test_the_builder_names_every_wrong_key() -> None:
    with pytest.raises(ConfigError) as caught:
        read_args({"tagret": {}, "limits": {"max_session": 1}, "drafter": {"max_depth": "x"}})
    assert "args.tagret: unknown key; did you mean 'target'?" in str(caught.value)
    assert "args.limits.max_session: unknown key; did you mean 'max_sessions'?" in str(caught.value)
    assert "args.drafter.max_depth: Input should be a valid integer" in str(caught.value)


def test_values_are_not_repeated_because_they_may_be_secrets() -> None:
    with pytest.raises(ConfigError) as caught:
        read_args({"target": {"dtype": "hunter2"}})
    assert "hunter2" not in str(caught.value)
