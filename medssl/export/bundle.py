"""Writing trained networks as a MONAI bundle (configs/, models/, docs/), which runs with MONAI and without medssl.

Nothing here imports MONAI: a bundle is text that names MONAI's classes, and a state dict. Steps for which MONAI has no
transform, such as normalising grey levels over a foreground, are short NumPy expressions in inference.json.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from medssl import __version__
from medssl.data.grid import STORED, THICK_SLICE_RATIO
from medssl.data.recipe import AIR_FRACTION, SAMPLED, Intensity, Recipe, Threshold
from medssl.errors import ConfigError
from medssl.export.card import NO_DEVICE, recipe_in_words, title_and_papers
from medssl.files import write_json
from medssl.networks import NetworkConfig, monai_network
from medssl.parts.views import Band, Viewed, bare
from medssl.trained import Trained

SCHEMA = "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
FOLDERS = ("configs", "docs", "models")
METADATA = "configs/metadata.json"
"""The file that marks a folder as a bundle."""
AXES = [["L", "R"], ["P", "A"], ["I", "S"]]
"""Labels of MONAI's orientations, as medssl uses them; given because MONAI will change its default."""
CODE = ("$", "@", "%")
"""First characters of a text in a bundle that MONAI evaluates or looks up."""


def write_bundle(folder: Path, runs: Sequence[Trained]) -> None:
    """Write everything of a bundle except its model card.

    Raises:
        ConfigError: a bundle cannot express the networks, the recipe or the window settings.
    """
    refuse_inexpressible(runs)
    for name in FOLDERS:
        (folder / name).mkdir()
    write_json(folder / METADATA, metadata(runs))
    write_json(folder / "configs" / "inference.json", inference(runs))
    nets = nn.ModuleList(bare(net) for one in runs for net in one.networks)
    torch.save(nets.state_dict(), folder / "models" / "model.pt")


def refuse_inexpressible(runs: Sequence[Trained]) -> None:
    """Raise a ConfigError that lists everything that a bundle cannot express."""
    first = runs[0].config
    faults = []
    if first.data.recipe.resize is not None:
        faults.append("data.recipe.resize: slices resized to one size")
    for config in (one.config for one in runs):
        window = config.window
        if window.mirror:
            faults.append("window.mirror: the mean over mirrored windows")
        if window.largest_component:
            faults.append("window.largest_component: keeping only the largest component")
        ours, theirs = (one.model_dump(exclude={"network", "patch", "batch"}) for one in (first.window, window))
        if ours != theirs or (first.window.patch or first.train.patch) != (window.patch or config.train.patch):
            faults.append("window, train.patch: runs whose windows differ")
    if not all(hasattr(bare(net), "made_from") for one in runs for net in one.networks):
        faults.append("method: networks that medssl did not build")
    if any(isinstance(view, Band) for one in runs for net in one.networks for view in _views(net)):
        faults.append("method: networks that see a frequency band")
    names = [
        name for one in runs for name in (one.config.data.name, *one.config.data.classes, *one.config.data.channels)
    ]
    faults += [f"the name {name!r}: MONAI evaluates text that begins with {name[0]}" for name in names
               if name[:1] in CODE]  # fmt: skip
    if faults:
        listed = "\n  ".join(dict.fromkeys(faults))
        raise ConfigError(
            f"--monai: a MONAI bundle cannot express\n  {listed}\n"
            "Leave out --monai to export a model folder for `medssl predict`, or choose other networks with --network"
        )


# ---- inference.json


def inference(runs: Sequence[Trained]) -> dict[str, Any]:
    """Return the content of inference.json, which segments the images of a folder on their own grids.

    `run` is a plain loop, which needs only MONAI; `evaluator` does the same for tools that look for one.
    """
    config = runs[0].config
    return {
        "bundle_root": ".",
        "dataset_dir": "$@bundle_root + '/images'",
        "output_dir": "$@bundle_root + '/predictions'",
        "device": "$torch.device('cuda:0' if torch.cuda.is_available() else 'cpu')",
        "imports": ["$import glob"],
        "files": _files(len(config.data.channels)),
        **_network(runs),
        **_recipe(config.data.recipe, len(config.data.channels)),
        "preprocessing": {"_target_": "Compose", "transforms": _preprocessing(config.data.recipe)},
        "dataset": {"_target_": "Dataset", "data": "@files", "transform": "@preprocessing"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@dataset", "batch_size": 1, "num_workers": 0},
        "inferer": _inferer(runs[0]),
        "postprocessing": {
            "_target_": "Compose",
            "transforms": _postprocessing(len(config.data.classes), is_cropped=config.data.recipe.crop),
        },
        "evaluator": {
            "_target_": "SupervisedEvaluator",
            "device": "@device",
            "val_data_loader": "@dataloader",
            "network": "@network",
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "amp": False,
        },
        "predict": "$torch.no_grad()(lambda case: @postprocessing("
        "{**case, 'pred': @inferer(case['image'][None].to(@device), @network)[0]}))",
        "run": ["$[@predict(case) and None for case in @dataset]"],
    }


def _files(channels: int) -> str:
    """Return the expression for the cases of a folder; with several channels, of files that end like `_0000.nii.gz`."""
    if channels == 1:
        return "$[{'image': path} for path in sorted(glob.glob(@dataset_dir + '/*.nii.gz'))]"
    return (
        "$[{'image': [path.replace('_0000.nii.gz', f'_{channel:04}.nii.gz') "
        f"for channel in range({channels})]}} for path in sorted(glob.glob(@dataset_dir + '/*_0000.nii.gz'))]"
    )


def _network(runs: Sequence[Trained]) -> dict[str, Any]:
    """Return the entries for one module that averages class probabilities; each network gets the axes in its order."""
    data, nets = runs[0].config.data, [net for one in runs for net in one.networks]
    made_from = [_made_from(net) for net in nets]
    described = [monai_network(each, len(data.channels), len(data.classes)) for each in made_from]
    orders = [each.axes for each in made_from]
    return {
        "networks": [{"_target_": name, **arguments} for name, arguments in described],
        "shares": [1 / (len(runs) * len(one.networks)) for one in runs for _ in one.networks],
        "there": [[0, 1, *(2 + axis for axis in order)] for order in orders],
        "back": [[0, 1, *(2 + order.index(axis) for axis in range(3))] for order in orders],
        "network_def": "$type('MeanOfNetworks', (torch.nn.ModuleList,), {'forward': lambda self, image: sum("
        "share * net(image.permute(there)).permute(back).float().softmax(1) "
        "for net, share, there, back in zip(self, @shares, @there, @back))})(@networks)",
        "network": "$@network_def.load_state_dict(torch.load(@bundle_root + '/models/model.pt', map_location='cpu', "
        "weights_only=True)) and @network_def.to(@device).eval()",
    }


def _recipe(recipe: Recipe, channels: int) -> dict[str, Any]:
    """Return the expressions that the transforms call, by name."""
    rules = recipe.intensities(channels)
    inside = "@foreground(x)" if any(rule.kind == "zscore" for rule in rules) else "None"
    parts = {
        "foreground": "$lambda x: (lambda found: found if found.any() else ~found)"
        f"(np.any({_by_channel(map(_inside, recipe.thresholds(channels)))}, axis=0))",
        "zscore": "$lambda c, low, high, kept: (np.clip(c, low, high) - kept.mean()) / (kept.std() or 1)",
        "normalised": "$lambda x: (lambda inside: monai.utils.convert_to_dst_type(np.stack("
        f"{_by_channel(map(_normalised, rules))}), x)[0])({inside})",
    }
    if recipe.spacing == (None, None, None):
        return parts
    return parts | {
        "spacing": [mm or 0 for mm in recipe.spacing],
        "wanted": "$lambda x: [new if new and abs(new - old) > 1e-3 * new else old "
        "for old, new in zip(x.pixdim.tolist(), @spacing)]",
        "is_thick": f"$lambda x: [mm > {THICK_SLICE_RATIO} * min(x.pixdim.tolist()) for mm in x.pixdim.tolist()]",
        # The matrix leads from voxels of the new grid to those of the old one, and the grids share their centre.
        "resampled": "$lambda x, shape, steps, order: monai.transforms.SpatialResample(mode=order, "
        "padding_mode='nearest')(x, spatial_size=shape, dst_affine=torch.matmul(x.affine, torch.tensor("
        "[[step if row == column else 0 for column in range(3)] + [(x.shape[row + 1] - 1) / 2 - step * "
        "(shape[row] - 1) / 2] for row, step in enumerate(steps)] + [[0, 0, 0, 1]], dtype=torch.float64)))",
        "along": "$lambda x, chosen, wanted, order: (lambda steps: @resampled(x, [max(1, round(n / step)) "
        "for n, step in zip(x.shape[1:], steps)], steps, order))([new / old if one else 1.0 "
        "for old, new, one in zip(x.pixdim.tolist(), wanted, chosen)])",
        "on_spacing": "$lambda x: (lambda wanted, thick: @along(@along(x, [not one for one in thick], wanted, 3), "
        "thick, wanted, 1))(@wanted(x), @is_thick(x))",
    }


def _by_channel(rules: Iterable[str]) -> str:
    """Return an expression for a list that applies each rule, an expression in c, to one channel of x."""
    return f"[rule(c) for rule, c in zip([{', '.join(f'lambda c: {rule}' for rule in rules)}], x.numpy())]"


def _inside(threshold: Threshold) -> str:
    """Return the expression for where a channel c is foreground."""
    if threshold == "nonzero":
        return "c != 0"
    if threshold is not None:
        return f"c > {threshold!r}"
    return (
        f"c > (lambda low, high: low + {AIR_FRACTION} * (high - low))"
        f"(float(c.min()), float(np.percentile(c.reshape(-1)[::1 + c.size // {SAMPLED}], 99.5)))"
    )


def _normalised(rule: Intensity) -> str:
    """Return the expression for the network's input from a channel c, whose foreground is `inside`."""
    if rule.kind == "clip" and rule.window is not None:
        low, high = rule.window
        return f"(c.clip({low!r}, {high!r}) - {low!r}) / {high - low!r}"
    return (
        "(lambda low, high: @zscore(c, low, high, np.clip(c[inside], low, high).astype(np.float64)))"
        f"(*np.percentile(c[inside], {list(rule.percentiles)!r}))"
    )


def _preprocessing(recipe: Recipe) -> list[dict[str, Any]]:
    crop = [
        {"_target_": "CopyItemsd", "keys": "image", "names": "foreground"},
        {
            "_target_": "Lambdad",
            "keys": "foreground",
            "func": "$lambda x: monai.utils.convert_to_dst_type(@foreground(x)[None], x)[0]",
        },
    ]
    cut: list[dict[str, Any]] = [
        {"_target_": "CropForegroundd", "keys": "image", "source_key": "foreground", "margin": recipe.margin,
         "allow_smaller": True},
        {"_target_": "CopyItemsd", "keys": "image", "names": "inside"},
        {"_target_": "Lambdad", "keys": "inside", "func": "$lambda x: x[:1] * 0 + 1"},
    ]  # fmt: skip
    return [
        {"_target_": "LoadImaged", "keys": "image", "ensure_channel_first": True},
        {"_target_": "CopyItemsd", "keys": "image", "names": "own"},
        *([{"_target_": "Orientationd", "keys": "image", "axcodes": recipe.orientation, "labels": AXES}]
          if recipe.orientation != STORED else []),
        *(crop if recipe.crop else []),
        {"_target_": "Lambdad", "keys": "image", "func": "@normalised"},
        *(cut if recipe.crop else []),
        *([{"_target_": "Lambdad", "keys": "image", "func": "@on_spacing"}]
          if recipe.spacing != (None, None, None) else []),
    ]  # fmt: skip


def _postprocessing(classes: int, *, is_cropped: bool) -> list[str | dict[str, Any]]:
    """Return the transforms after the network: likeliest class on the image's own grid, background outside the crop."""
    to_own = {"_target_": "ResampleToMatchd", "key_dst": "own", "padding_mode": "zeros"}
    crop: list[str | dict[str, Any]] = [
        {**to_own, "keys": "inside", "mode": "nearest"},
        "$lambda case: {**case, 'pred': case['pred'] * (case['inside'] > 0)}",
    ]
    return [
        {**to_own, "keys": "pred", "mode": "bilinear"},
        {"_target_": "AsDiscreted", "keys": "pred", "argmax": True},
        *(crop if is_cropped else []),
        {
            "_target_": "SaveImaged",
            "keys": "pred",
            "output_dir": "@output_dir",
            "output_postfix": "",
            "output_dtype": "$np.uint8" if classes <= 256 else "$np.uint16",
            "resample": False,
            "separate_folder": False,
        },
    ]


def _inferer(trained: Trained) -> dict[str, Any]:
    window, patch = trained.config.window, trained.config.window.patch or trained.config.train.patch
    overlap: float | list[float] = window.overlap
    if window.stride is not None:  # the stride of MONAI is the whole part of `patch * (1 - overlap)`
        overlap = [max(0.0, 1 - (step + 0.5) / side) for step, side in zip(window.stride, patch, strict=True)]
    return {
        "_target_": "SlidingWindowInferer",
        "roi_size": list(patch),
        "sw_batch_size": window.batch,
        "overlap": overlap,
        "mode": window.blend,
        "sw_device": "@device",
        "device": "$torch.device('cpu')",
    }


# ---- metadata.json


def metadata(runs: Sequence[Trained]) -> dict[str, Any]:
    """Return the content of metadata.json, by the schema that it names."""
    config = runs[0].config
    data, patch = config.data, list(config.window.patch or config.train.patch)
    titles = dict(title_and_papers(one.config) for one in runs)
    return {
        "schema": SCHEMA,
        "version": "1.0.0",
        "changelog": {"1.0.0": f"exported by medssl {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": torch.__version__.partition("+")[0],
        "numpy_version": version("numpy"),
        "required_packages_version": {name: version(name) for name in ("nibabel", "scipy")},
        "name": data.name,
        "task": f"Segmentation of {', '.join(data.classes[1:])} in 3D scans ({', '.join(data.channels)})",
        "description": f"Trained with medssl: {'; '.join(titles)}. Images are prepared as follows: "
        f"{'; '.join(recipe_in_words(data))}. {NO_DEVICE}",
        "authors": "not stated",
        "copyright": "not stated",
        "intended_use": NO_DEVICE,
        "references": [paper for papers in titles.values() for paper in papers],
        "network_data_format": {
            "inputs": {"image": _tensor("magnitude", data.channels, patch, modality=", ".join(data.channels))},
            "outputs": {"pred": _tensor("labels", data.classes, patch, value_range=[0, 1])},
        },
    }


def _tensor(format: str, channels: Sequence[str], patch: list[int], **more: Any) -> dict[str, Any]:
    return {
        "type": "image",
        "format": format,
        "num_channels": len(channels),
        "spatial_shape": patch,
        "dtype": "float32",
        "value_range": [],
        "is_patch_data": True,
        "channel_def": {str(place): name for place, name in enumerate(channels)},
        **more,
    }


# ---- networks


def _views(net: nn.Module) -> list[Any]:
    """Return the views through which a network sees its input, outermost first."""
    return [net.view, *_views(net.net)] if isinstance(net, Viewed) else []


def _made_from(net: nn.Module) -> NetworkConfig:
    config: Any = bare(net).made_from
    assert isinstance(config, NetworkConfig)
    return config
