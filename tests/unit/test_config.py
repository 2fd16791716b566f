from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from envs.errors import InputError
from trainers.config import RunConfig, Section
from trainers.config_file import dump_config, load_config

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = sorted((ROOT / "configs").glob("*.yaml"))
GPU = "configs/grpo_qwen2.5_7b.yaml"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def written(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path | None, *overrides: str) -> str:
    with pytest.raises(InputError) as caught:
        load_config(path, overrides)
    return str(caught.value)


def test_the_file_goes_over_the_defaults_and_the_command_line_over_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "trainer: {steps: 7, kl: 0.1}\n")
    config = load_config(path, ["trainer.kl=0.5"])
    assert (config.trainer.steps, config.trainer.kl, config.trainer.epsilon) == (7, 0.5, 0.2)


def test_overrides_are_read_as_yaml() -> None:
    config = load_config(None, ["trainer.learning_rate=1e-4", "cards.languages=[zh]", "policy.system_prompt=null"])
    assert config.trainer.learning_rate == 1e-4
    assert config.cards.languages == ["zh"]
    assert config.policy.system_prompt is None


def test_an_override_reaches_into_a_list() -> None:
    assert load_config(None, ["rewards.0.weight=3"]).rewards[0].weight == 3
    assert "no position in a list of 1" in refusal(None, "rewards.1.weight=3")


def test_the_resolved_config_reads_back_to_the_same(tmp_path: Path) -> None:
    config = load_config(ROOT / GPU, ["run.seed=4"])
    assert load_config(written(tmp_path, dump_config(config))) == config


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_config_is_valid(path: Path) -> None:
    assert load_config(path).run.name == path.stem.replace("_", "-")


def test_a_misspelt_key_is_answered_with_the_likely_one_and_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "trainer: {learning_rte: 1}\n")
    assert refusal(path) == f"{path}: trainer.learning_rte: is not a known key; did you mean 'trainer.learning_rate'?"


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("trainer.lr=1", "trainer.learning_rate"),
        ("trainer.beta=1", "trainer.kl"),
        ("trainer.rank=8", "lora.rank"),
        ("polcy.model=x", "policy"),
        ("rewards.0.wieght=2", "rewards.0.weight"),
    ],
)
def test_a_key_by_another_name_or_in_another_section_is_recognised(override: str, meant: str) -> None:
    message = refusal(None, override)
    assert f"did you mean {meant!r}?" in message
    assert message.startswith("command line: ")


def test_a_key_like_no_other_is_answered_with_what_is_known_there() -> None:
    assert "known here: name, dir, seed" in refusal(None, "run.zzz=1")


def test_every_problem_is_told_at_once(tmp_path: Path) -> None:
    path = written(tmp_path, "trainer: {steps: none, kl: -1}\nlora: {rank: 0}\n")
    lines = refusal(path).splitlines()
    assert [line.split(": ")[1] for line in lines] == ["lora.rank", "trainer.steps", "trainer.kl"]


@pytest.mark.parametrize(
    ("overrides", "key", "remedy"),
    [
        (["policy.max_new_tokens=1024"], "policy.max_new_tokens", "lower the first or raise the second"),
        (["lora.dropout=0.1"], "lora.dropout", "must be 0"),
        (["evaluation.split=train"], "evaluation.split", "evaluate on another split"),
        (
            ["trainer.micro_batch=5"],
            "trainer.micro_batch",
            "32 dialogues a step (cards_per_step x dialogues_per_card) are no multiple",
        ),
        (["policy.dtype=bfloat16"], "trainer.logprob_tolerance", "raise it to 0.01 or more"),
        (["trainer.micro_batch_tokens=1000"], "trainer.micro_batch_tokens", "policy.context_tokens (1024)"),
        (["policy.quantization=4bit"], "trainer.logprob_tolerance", "raise it to 0.5 or more"),
        (
            ["policy.quantization=8bit", "trainer.logprob_tolerance=1", "trainer.importance_correction=none"],
            "trainer.importance_correction",
            "set token_truncate",
        ),
        (
            ["policy.quantization=8bit", "trainer.logprob_tolerance=1", "trainer.deepspeed=configs/deepspeed/x.json"],
            "trainer.deepspeed",
            "remove it, or policy.quantization",
        ),
        (["rewards=[{name: emotion}, {name: emotion}]"], "rewards", "named twice"),
        (["rewards=[{name: format-think}]"], "rewards", "format-think rewards a format that policy.format (plain)"),
        (["policy.format_required=true"], "policy.format_required", "no format that a reply could break"),
        (["policy.format=think"], "policy.format", "add {name: format-think, weight: 0.2} to rewards"),
        (
            ["policy.format=kardia", "rewards=[{name: emotion}, {name: format-kardia, weight: 0}]"],
            "policy.format",
            "or set policy.format_required",
        ),
        (["engine.kind=transformers", "engine.urls=[http://127.0.0.1:1]"], "engine.urls", "remove urls"),
        (["engine.port=8000", "engine.urls=[http://127.0.0.1:1]"], "engine.port", "remove one of the two"),
        (["engine.urls=['127.0.0.1:1']"], "engine.urls", "must begin with http://"),
        (["engine.tensor_parallel=2"], "engine.tensor_parallel", "must equal the number of devices.engine"),
        (
            ["devices.training=[0]", "devices.engine=[1, 2, 3]", "engine.replicas=2"],
            "engine.tensor_parallel",
            "1, for each of engine.replicas (2), must equal the number of devices.engine (3)",
        ),
        (["engine.replicas=2", "engine.urls=[http://127.0.0.1:1]"], "engine.replicas", "remove one of the two"),
        (["engine.replicas=2", "engine.kind=transformers"], "engine.replicas", "set engine.kind to vllm"),
        (
            ["engine.replicas=3", "engine.port=65534"],
            "engine.port",
            "would take 65536; name a lower one, at",
        ),
        (["devices.training=[0, 0]"], "devices.training", "names a GPU twice"),
        (["devices.training=[0, 1]", "devices.engine=[1]"], "devices.engine", "the same GPUs as devices.training"),
        (["devices.engine=[0]"], "devices.training", "name the GPUs that train"),
        (
            ["trainer.deepspeed=configs/deepspeed/zero2.json", "devices.training=[0]"],
            "trainer.deepspeed",
            "remove it, or train on several",
        ),
        (["trainer.dialogues_per_card=1"], "trainer.dialogues_per_card", "set 2 or more"),
        (["trainer.turn_discount=0.5"], "trainer.turn_discount", "is for grpo with credit: turn"),
        (["trainer.value_clip=0.3"], "trainer.value_clip", "says nothing to grpo"),
        (["trainer.algorithm=ppo", "trainer.combine=decoupled"], "trainer.combine", "ppo has no groups"),
        (["trainer.credit=utterance", "trainer.combine=decoupled"], "trainer.combine", "need one total"),
        (["trainer.attribution=rubric-attribution"], "trainer.attribution", "says nothing without trainer.credit"),
        (
            ["trainer.algorithm=ppo", "trainer.cards_per_step=1", "trainer.dialogues_per_card=1"],
            "trainer.cards_per_step",
            "set 2 or more",
        ),
        (["trainer.kl=.nan"], "trainer.kl", "finite number"),
        (["rewards=[]"], "rewards", "at least 1 item"),
    ],
)
def test_what_can_not_be_combined_is_refused_with_a_remedy(overrides: list[str], key: str, remedy: str) -> None:
    message = refusal(None, *overrides)
    assert message.startswith(f"command line: {key}: ") or f": {key}: " in message
    assert remedy in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("cards.paths=[nowhere]", "cards.paths.0: there is no nowhere"),
        ("policy.system_prompt=gone.txt", "policy.system_prompt: there is no gone.txt"),
        ("policy.chat_template=gone.jinja", "policy.chat_template: there is no gone.jinja"),
        ("policy.model=./my-model", "policy.model: './my-model' is neither"),
        ("policy.model=configs", "policy.model: configs has no config.json"),
    ],
)
def test_a_missing_file_is_named_with_its_key(override: str, said: str) -> None:
    assert refusal(None, override).startswith(f"command line: {said}")


def test_a_format_is_held_by_its_reward_or_by_the_requirement() -> None:
    rewarded = load_config(None, ["policy.format=think", "rewards=[{name: emotion}, {name: format-think}]"])
    assert load_config(None, ["policy.format=think", "policy.format_required=true"]).policy.format_required
    assert rewarded.policy.format == "think"


def test_a_hub_id_needs_no_folder() -> None:
    assert load_config(None, ["policy.model=Qwen/Qwen2.5-0.5B-Instruct"]).policy.model == "Qwen/Qwen2.5-0.5B-Instruct"


def test_a_stage_that_zero_does_not_have_is_refused(tmp_path: Path) -> None:
    eight = ROOT / "configs/grpo_qwen2.5_7b_8gpu.yaml"
    sharded = tmp_path / "zero4.json"
    sharded.write_text(json.dumps({"zero_optimization": {"stage": 4}}), encoding="utf-8")
    assert "asks for ZeRO stage 4; there are 0, 1, 2 and 3" in refusal(eight, f"trainer.deepspeed={sharded}")
    assert load_config(eight, ["trainer.deepspeed=configs/deepspeed/zero3.json"]).trainer.deepspeed


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is not valid YAML"),
        ("- 1\n", "must be a mapping of sections (run, policy"),
        ("trainer: 3\n", "trainer: Input should be a valid dictionary"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = written(tmp_path, text)
    assert refusal(path).startswith(f"{path}: ")
    assert said in refusal(path)


def test_a_missing_file_is_answered_with_the_configs_there_are() -> None:
    assert refusal(Path("configs/dmeo.yaml")).startswith("configs/dmeo.yaml: there is no such file; configs here: ")
    assert "configs/demo.yaml" in refusal(Path("configs/dmeo.yaml"))


def test_an_empty_file_means_the_defaults(tmp_path: Path) -> None:
    assert load_config(written(tmp_path, "")) == RunConfig()


@pytest.mark.parametrize("override", ["trainer.steps", "=3", "trainer..steps=3"])
def test_an_override_of_another_form_is_refused(override: str) -> None:
    assert "is not of the form section.key=value" in refusal(None, override)


def test_nothing_can_be_set_inside_a_value(tmp_path: Path) -> None:
    path = written(tmp_path, "run: {seed: 1}\n")
    assert "seed holds the value 1" in refusal(path, "run.seed.x=2")


def test_every_key_says_what_it_is() -> None:
    silent = [
        f"{section.__name__}.{name}"
        for section in Section.__subclasses__()
        for name, field in section.model_fields.items()
        if not field.description
    ]
    assert silent == []


def test_every_number_of_the_gpu_configs_that_differs_from_the_default_has_a_reason() -> None:
    """In the single-GPU file each line that sets a value has a comment, but for names and what the machine is."""
    lines = (ROOT / GPU).read_text(encoding="utf-8").splitlines()
    setting = [line for line in lines if line.startswith("  ") and ":" in line and not line.strip().startswith("#")]
    bare = [line.strip() for line in setting if "#" not in line]
    assert [line.split(":")[0] for line in bare] == ["name", "model", "training", "memory_gib"]


def test_the_shipped_launch_file_matches_the_devices_of_its_run() -> None:
    launch = yaml.safe_load((ROOT / "configs/launch/4gpu.yaml").read_text(encoding="utf-8"))
    devices = load_config(ROOT / "configs/grpo_qwen2.5_7b_8gpu.yaml").devices.training
    assert launch["num_processes"] == len(devices)
    assert launch["gpu_ids"] == ",".join(map(str, devices))


@pytest.mark.slow
def test_accelerate_reads_the_shipped_launch_file() -> None:
    config_args = pytest.importorskip("accelerate.commands.config.config_args")
    launch = config_args.load_config_from_file(str(ROOT / "configs/launch/4gpu.yaml"))
    assert (launch.distributed_type.value, launch.num_processes, launch.mixed_precision) == ("MULTI_GPU", 4, "bf16")


@pytest.mark.slow
def test_deepspeed_reads_the_shipped_files_once_the_trainer_has_filled_them_in() -> None:
    runtime = pytest.importorskip("deepspeed.runtime.config")
    for path in sorted((ROOT / "configs/deepspeed").glob("*.json")):
        filled = {key: value for key, value in json.loads(path.read_text(encoding="utf-8")).items() if value != "auto"}
        filled |= {"bf16": {"enabled": True}, "train_batch_size": 8, "train_micro_batch_size_per_gpu": 2}
        filled |= {"gradient_accumulation_steps": 4, "gradient_clipping": 1.0}
        read = runtime.DeepSpeedConfig(filled)
        assert (f"zero{read.zero_optimization_stage}", read.gradient_clipping) == (path.stem, 1.0)
        assert read.zero_config.model_dump()["overlap_comm"] is True
