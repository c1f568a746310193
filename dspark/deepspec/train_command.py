"""`deepspec train`: a recipe file, or the shipped pair's defaults, with single values set on the command line."""

from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from dspark.deepspec.recipe import Recipe
from dspark.errors import ConfigError

RecipePath = Annotated[Path | None, typer.Argument(metavar="[RECIPE]", help="YAML with the keys of dspark/deepspec/recipe.py.")]
Out = Annotated[Path, typer.Option("--out", help="Folder of the run; the same command goes on where a killed one stopped.")]
Data = Annotated[list[Path] | None, typer.Option("--data", help="Samples; may be given several times.")]
Settings = Annotated[list[str] | None, typer.Option("--set", help="One value of the recipe: training.num_steps=2000.")]


def train(
    recipe: RecipePath = None,
    out: Out = Path("build/drafter"),
    data: Data = None,
    settings: Settings = None,
    target: Annotated[str | None, typer.Option(help="Folder, hub name or demo:target.")] = None,
    kind: Annotated[str | None, typer.Option(help="dspark, dflash, eagle3 or language_model.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    threads: Annotated[int | None, typer.Option(min=1, help="Torch threads.")] = None,
    compile_: Annotated[bool, typer.Option("--compile", help="torch.compile the drafter; minutes to start.")] = False,
    cache_gb: Annotated[float, typer.Option(min=0.0, help="Keep target features on disk up to this size; 0 computes them online.")] = 0.0,
    cache_dtype: Annotated[str, typer.Option(help="bfloat16 or float8.")] = "bfloat16",
    workers: Annotated[int, typer.Option(min=1, help="More than one: Ray Train starts so many (extra `ray-train`).")] = 1,
    save_every_s: Annotated[float, typer.Option(min=0.0, help="Seconds between saved states; 0 saves after every step.")] = 300.0,
    held_out_every: Annotated[int, typer.Option(min=1, help="Steps between looks at the held-out samples.")] = 200,
    decode: Annotated[int, typer.Option(min=0, help="Held-out prompts decoded at every save for a real tau; 0: none.")] = 8,
) -> None:
    """Train a drafter for a target: DSpark, DFlash, EAGLE-3-style or a small language model."""
    from dspark.deepspec.job import JobOptions  # torch takes seconds to import; --help should not
    from dspark.deepspec.job import train as run_job
    from dspark.deepspec.train import RunOptions

    chosen = read_recipe(recipe, settings or [], data or [], target, kind)
    options = JobOptions(
        device=device,
        threads=threads,
        compile=compile_,
        cache=_cache(out, cache_gb, cache_dtype),
        decode_prompts=decode,
        run=RunOptions(save_every_s=save_every_s, held_out_every=held_out_every),
    )
    if workers == 1:
        run_job(chosen, out, options)
    else:
        from dspark.deepspec.launcher import train_on_ray

        train_on_ray(chosen, out, options, workers)


def read_recipe(path: Path | None, settings: list[str], data: list[Path], target: str | None, kind: str | None) -> Recipe:
    """The file's values under those of the command line. Raises ConfigError naming each key at fault."""
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{path}: cannot be read ({error})") from error
        if not isinstance(values, dict):
            raise ConfigError(f"{path}: holds {type(values).__name__}, not a mapping")
    if data:
        values["data"] = [str(item) for item in data]
    for key, value in (("target", target), ("drafter.kind", kind)):
        if value is not None:
            _put(values, key, value)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: write it as key=value", "set")
        _put(values, key, yaml.safe_load(text))
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ConfigError(f"{path or 'the recipe'}: " + "; ".join(problems)) from error


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{key}: {parent} is not a mapping", key)
    values[last] = value


def _cache(out: Path, cache_gb: float, dtype: str) -> Any:
    from dspark.deepspec.feature_cache import DTYPES, CacheOptions

    if dtype not in DTYPES:
        raise ConfigError(f"--cache-dtype {dtype!r} is none of {', '.join(DTYPES)}", "cache-dtype")
    return None if cache_gb == 0 else CacheOptions(out / "features", int(cache_gb * 1e9), dtype)
