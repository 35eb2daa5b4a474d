"""The figures of docs/methods.md: what each method does in a step, on phantoms, by the method's own functions.

    python docs/figures/methods.py                # all of them, in a few minutes on a CPU
    python docs/figures/methods.py bcp rail       # these

A method trains for some steps with a small network, and the panels show the batch of the next step. Class
colours are those of reports. Everything is seeded, so that a second run draws the same pictures.
"""

from __future__ import annotations

import io
import sys
import tempfile
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from PIL import Image
from torch import Tensor

from medssl.config import bundled, merge, parse
from medssl.data.cases import DatasetConfig
from medssl.data.draw import Wish, make_split
from medssl.data.phantoms import write_dataset
from medssl.data.splits import write_split
from medssl.methods.base import at_rest
from medssl.methods.inside import decoder_blocks, with_fewer_channels
from medssl.palette import class_colour, grey_window
from medssl.parts.mix import paste, random_box
from medssl.parts.perturb import strong_view
from medssl.parts.pseudo import likeliest
from medssl.parts.sample import Progress, Sample, TrainBatch
from medssl.parts.schedules import generator, mix
from medssl.prepare import prepare
from medssl.run import load_run_config
from medssl.train import make_streams, make_trainer, open_data

HERE = Path(__file__).parent
STEPS = 120
SEED = 0
WIDTH, PANEL, DPI = 1200, 240, 100
"""Most pixels across a figure, and across one of its panels."""
THIN = ("train.patch=[48,48,16]",)
"""Fewer slices than the phantom's configuration has, for time."""
ORANGE, RED, BLUE = "#ff9d2e", "#ff3b3b", "#3fa7ff"
HEAT = LinearSegmentedColormap.from_list("heat", [to_rgba(ORANGE, 0), to_rgba(ORANGE, 0.75), to_rgba("#fff3a0", 1)])


@dataclass(frozen=True)
class Scene:
    """A method after some steps, and the batch of its next one."""

    method: Any
    batch: TrainBatch
    progress: Progress

    @property
    def rng(self) -> torch.Generator:
        """A new generator for what a step draws."""
        return generator(SEED, 28)


@dataclass(frozen=True)
class Panel:
    """A slice of the first volume of a batch `(B, M, X, Y, Z)`, and what is drawn over it, `(B, X, Y, Z)` each."""

    title: str
    image: Tensor
    place: int
    """The slice."""
    axis: int = 2
    """The axis that is cut across."""
    beside: Tensor | None = None
    """Another image, whose range of grey levels is shown."""
    line: Tensor | None = None
    """Classes that an expert named, as contours."""
    fill: Tensor | None = None
    """Classes that a network named, filled."""
    heat: Tensor | None = None
    """Numbers of which the largest in the slice is the brightest."""
    marks: Sequence[tuple[Tensor, str]] = ()
    """Voxels in a colour each."""
    hidden: Tensor | None = None
    """Voxels that do not count, darkened."""
    boxes: Sequence[Tensor] = ()
    """Voxels that a dashed line goes around, each apart."""
    points: Sequence[tuple[float, float, str]] = ()
    """Places in the slice, and a colour each."""

    def cut(self, volumes: Tensor) -> Tensor:
        """The slice, with the image's right to the right and its second axis downwards."""
        return volumes.flatten(0, -4)[0].select(self.axis, self.place).T


Draw = Callable[[Scene], list[Panel]]
FIGURES: dict[str, tuple[str, tuple[str, ...], Draw]] = {}
"""By the name of a file in configs/method: the kind of phantom, settings, and what draws the panels."""


def drawn_on(kind: str, *settings: str) -> Callable[[Draw], Draw]:
    """Register what draws the figure of the method of its name."""

    def register(draw: Draw) -> Draw:
        FIGURES[draw.__name__] = (kind, settings, draw)
        return draw

    return register


# One function a method, in the order of docs/methods.md


@drawn_on("cardiac")
def supervised(scene: Scene) -> list[Panel]:
    image, label = scene.batch.image, scene.batch.label
    logits, z = at_rest(scene.method.student, image), busiest(label)
    loss = F.cross_entropy(logits, label, reduction="none")
    return [
        Panel("labelled patch, with the expert's label", image, z, line=label),
        Panel("what the network says", image, z, fill=likeliest(logits)),
        Panel("how wrong each voxel is: the loss", image, z, heat=loss),
    ]


@drawn_on("cardiac")
def mean_teacher(scene: Scene) -> list[Panel]:
    method, image = scene.method, scene.batch.unlabelled
    noisy = method.noisy(image, scene.batch.seeds)
    student, teacher = at_rest(method.pair.student, image), method.pair.taught(noisy)
    z = busiest(likeliest(teacher))
    squares = (student.softmax(1) - teacher.softmax(1)).square().mean(1)
    return [
        Panel("unlabelled patch, as the student sees it", image, z),
        Panel("what the student says", image, z, fill=likeliest(student)),
        Panel("the teacher sees noise on top", noisy, z),
        Panel("what the teacher says", noisy, z, fill=likeliest(teacher)),
        Panel("squared difference of the two: the loss", image, z, heat=squares),
    ]


@drawn_on("cardiac")
def uamt(scene: Scene) -> list[Panel]:
    method, image, seeds = scene.method, scene.batch.unlabelled, scene.batch.seeds
    taught = likeliest(method.pair.taught(method.noisy(image, seeds)))
    drawn = [mix(seed, 1) for seed in seeds]
    one = likeliest(method.pair.taught(method.noisy(image, drawn), dropout=drawn))
    unsure, z = method.uncertainty(image, seeds), busiest(taught)
    doubt = unsure >= method.highest(Progress(0, STEPS))
    return [
        Panel("unlabelled patch, and what the teacher says", image, z, fill=taught),
        Panel("one of its 8 answers with noise and dropout", image, z, fill=one),
        Panel("how undecided the mean of all 8 is", image, z, heat=unsure),
        Panel("dark: too undecided to count, at first", image, z, fill=taught, hidden=doubt),
    ]


@drawn_on("cardiac")
def cps(scene: Scene) -> list[Panel]:
    method, image = scene.method, scene.batch.unlabelled
    first, second = (likeliest(at_rest(net, image)) for net in (method.first, method.second))
    z = busiest(first)
    return [
        Panel("unlabelled patch", image, z),
        Panel("network 1 says this, which network 2 is told", image, z, fill=first),
        Panel("network 2 says this, which network 1 is told", image, z, fill=second),
        Panel("where each learns something from the other", image, z, marks=[(first != second, ORANGE)]),
    ]


@drawn_on("cardiac", "method.threshold=0.8")
def fixmatch(scene: Scene) -> list[Panel]:
    method, batch = scene.method, scene.batch
    weak = method.pseudo_label(batch.weak_view())
    changed = replace(weak, image=batch.unlabelled)
    strong = method.strong(changed, [mix(seed, 7) for seed in batch.seeds], scene.rng).image
    answer, z, doubt = likeliest(at_rest(method.student, strong)), busiest(weak.target), weak.weight == 0
    return [
        Panel("weak view of an unlabelled patch", weak.image, z),
        Panel("what the network says of it", weak.image, z, fill=weak.target),
        Panel("strong view: other grey levels and blur", strong, z, beside=weak.image),
        Panel("what the network says of that", strong, z, beside=weak.image, fill=answer),
        Panel("what it should have said; dark does not count", strong, z, beside=weak.image, fill=weak.target,
              hidden=doubt),
    ]  # fmt: skip


@drawn_on("cardiac", "method.threshold=0.8", "method.cutmix=1")
def unimatch(scene: Scene) -> list[Panel]:
    method, batch, rng = scene.method, scene.batch, scene.rng
    weak, seeds = method.pseudo_label(batch.weak_view()), [[mix(s, n) for s in batch.seeds] for n in (4, 2)]
    changed = replace(weak, image=batch.unlabelled)
    first, second = (method.strong(changed, drawn, rng) for drawn in seeds)
    box, other = (  # where a view is not what it is without a box
        (view.image != strong_view(changed.image, drawn))[:, 0]
        for view, drawn in zip((first, second), seeds, strict=True)
    )
    fewer = with_fewer_channels(method.student, weak.image, method.config.feature_dropout, batch.seeds)
    z = busiest(weak.target * box * other)
    return [
        Panel("weak view, and what the network says", weak.image, z, fill=weak.target),
        Panel("strong view; in the box another patch", first.image, z, beside=weak.image, boxes=[box]),
        Panel("its target, cut alike; dark does not count", first.image, z, beside=weak.image, fill=first.target,
              hidden=first.weight == 0, boxes=[box]),
        Panel("another strong view, with another box", second.image, z, beside=weak.image, boxes=[other]),
        Panel("weak view, with half of the features missing", weak.image, z, fill=likeliest(fewer)),
    ]  # fmt: skip


@drawn_on("cardiac")
def bcp(scene: Scene) -> list[Panel]:
    batch, labelled = scene.batch, Sample.of(scene.batch.image, scene.batch.label)
    box = random_box(batch.image.shape[2:], scene.method.config.box, scene.rng)
    pseudo = scene.method.pseudo_label(batch.unlabelled)
    inward, outward = paste(pseudo[:1], labelled[1:], box), paste(labelled[:1], pseudo[1:], box)
    z, here = busiest(inward.target * box), box[None]
    return [
        Panel("labelled patch, with the expert's label", batch.image[1:], z, line=batch.label[1:], boxes=[here]),
        Panel("unlabelled patch: the teacher labels it", pseudo.image, z, fill=pseudo.target, boxes=[here]),
        Panel("its box in the labelled patch", inward.image, z, boxes=[here]),
        Panel("the target of that; filled voxels weigh half", inward.image, z, boxes=[here],
              line=inward.target * ~box, fill=inward.target * box),
        Panel("the other way around, with two other patches", outward.image, z, boxes=[here],
              line=outward.target * box, fill=outward.target * ~box),
    ]  # fmt: skip


@drawn_on("cbct", *THIN)
def cfc_mt(scene: Scene) -> list[Panel]:
    method, image = scene.method, scene.batch.unlabelled
    low, high = method.low.view.apply(image), method.high.view.apply(image)
    seen = method.look(scene.batch)
    teacher, ours, theirs = (likeliest(logits) for logits in (seen.teacher, *seen.unlabelled))
    z = busiest(teacher)
    return [
        Panel("unlabelled patch: the teacher sees all of it", image, z, fill=teacher),
        Panel("coarse part: what the low student sees", low, z),
        Panel("what the low student says", low, z, fill=ours),
        Panel("fine part: what the high student sees", high, z),
        Panel("what the high student says", high, z, fill=theirs),
        Panel("where the students differ", image, z, marks=[(ours != theirs, ORANGE)]),
    ]


@drawn_on("cbct", *THIN)
def ucf_mix(scene: Scene) -> list[Panel]:
    method, image = scene.method, scene.batch.unlabelled
    low, high = (logits.detach().softmax(1) for logits in method.look(scene.batch).unlabelled)
    hard, surer = method.mix(image, low, high), method.surer(low, high)
    easy = torch.where(surer, method.low.view.apply(image), method.high.view.apply(image))
    z, blocks = busiest(hard.target), [(surer[:, 0], BLUE), (~surer[:, 0], ORANGE)]
    return [
        Panel("unlabelled patch", image, z),
        Panel("surer in each block: low student (blue), high (orange)", image, z, marks=blocks),
        Panel("easy mix: what the surer one saw", easy, z),
        Panel("hard mix, which both learn from: what it did not see", hard.image, z),
        Panel("target: what the surer one said", hard.image, z, fill=hard.target),
        Panel("how little each voxel is trusted", image, z, heat=1 - hard.weight),
    ]


@drawn_on("cbct", *THIN)
def rail(scene: Scene) -> list[Panel]:
    method, batch = scene.method, scene.batch
    turn, _ = method.turn(scene.progress)
    learning = method.group(turn)
    nets = [*learning.students, *(net for net in method.students() if net not in learning.students)]
    best = int(method.best(turn, [at_rest(net, batch.image) for net in nets], batch.label))
    ours = nets[0] if best != 0 else nets[1]
    named, told = (likeliest(at_rest(net, batch.image)) for net in (ours, nets[best]))
    said, guide = (likeliest(at_rest(net, batch.unlabelled)) for net in (ours, nets[best]))
    teacher = likeliest(learning.pair.taught(batch.unlabelled))
    differ, z, u = named != told, busiest(batch.label), busiest(teacher)
    wrong = [(differ, ORANGE), (differ & (named != batch.label), RED)]
    return [
        Panel("labelled patch: the best of the four students", batch.image, z, fill=told),
        Panel("another student, whose turn it is", batch.image, z, fill=named),
        Panel("where they differ it learns more; red: it is wrong", batch.image, z, marks=wrong),
        Panel("unlabelled patch: its group's teacher, whom it follows", batch.unlabelled, u, fill=teacher),
        Panel("the best student, whom it follows as well", batch.unlabelled, u, fill=guide),
        Panel("where it differs from the best, it is to be undecided", batch.unlabelled, u,
              marks=[(said != guide, ORANGE)]),
    ]  # fmt: skip


@drawn_on("cbct", "network.name=unet", "network.kernels=[[3,3,1]]", "method.flat_levels=0")
def umct(scene: Scene) -> list[Panel]:
    method, image = scene.method, scene.batch.unlabelled
    probs, uncertainty = method.opinions(image, scene.batch.seeds)
    named, target = [likeliest(each) for each in probs], likeliest(method.targets(probs, uncertainty)[0])
    doubt, z = uncertainty.flatten(1).mean(1).tolist(), busiest(target)
    return [
        *(Panel(f"network {view + 1} looks at {planes} planes (doubt {doubt[view]:.4f})", image, busiest(target, axis),
                axis, fill=named[view])
          for view, (planes, axis) in enumerate([("axial", 2), ("coronal", 1), ("sagittal", 0)])),
        Panel("networks 2 and 3 together: what network 1 is told", image, z, fill=target),
        Panel("where network 1 says something else", image, z, marks=[(target != named[0], ORANGE)]),
    ]  # fmt: skip


@drawn_on("cbct", *THIN, "method.prompts.reliable=0.7")
def sss(scene: Scene) -> list[Panel]:
    method, batch = scene.method, scene.batch
    image, probs = batch.weak_view(), at_rest(method.student, batch.weak_view()).softmax(1)
    confidence, target = probs.max(1)
    first, second = (strong_view(batch.unlabelled, [mix(seed, view) for seed in batch.seeds]) for view in range(2))
    features, alike = compared(method.student, first, second)
    prompts = [one for one in method.prompts(image[:, 0], probs, [0] * len(image)) if one.volume == 0]
    z = max((one.plane for one in prompts), key=[one.plane for one in prompts].count)
    boxes, points = [], []
    for one in (prompt for prompt in prompts if prompt.plane == z):
        box = torch.zeros_like(target[:1], dtype=torch.bool)
        box[(0, *one.box, z)] = True
        boxes.append(box)
        points.append((*one.points[0].tolist(), BLUE))
    coarse = z * features.shape[-1] // image.shape[-1]
    agreed, doubted = (features[:, [int(channel)]] for channel in (alike.argmin(), alike.argmax()))
    return [
        Panel("weak view: what the network says; dark does not count", image, z, fill=target,
              hidden=confidence < method.config.threshold),
        Panel("strong view, for the same target", first, z, beside=image),
        Panel("another one", second, z, beside=image),
        Panel("a feature that both views show alike: it weighs more", agreed, coarse),
        Panel("one that they do not show alike: it weighs less", doubted, coarse),
        Panel("if asked for: boxes and inner points that SAM 2 is given", image, z, boxes=boxes, points=points),
    ]  # fmt: skip


@drawn_on("cardiac")
def combined(scene: Scene) -> list[Panel]:
    method, batch = scene.method, scene.batch
    weak = batch.weak_view()
    said = method.said(weak)
    told, labelled = method.told(0, batch.unlabelled, said).pseudo, Sample.of(batch.image, batch.label)
    box = random_box(batch.image.shape[2:], method.config.box, scene.rng)
    pasted, there = paste(told[:1], labelled[1:], box), [(said.disputed, RED)]
    z = busiest(pasted.target * box)
    return [
        Panel("labelled patch, which students see whole too", batch.image[1:], z, line=batch.label[1:]),
        Panel("unlabelled patch, grey levels unchanged: teacher 1", weak, z, fill=likeliest(said.probs[0])),
        Panel("teacher 2, of another group", weak, z, fill=likeliest(said.probs[1])),
        Panel("both together; red: disputed, less trusted", weak, z, fill=told.target, marks=there),
        Panel("pasted into the labelled patch, with its target", pasted.image, z, boxes=[box[None]],
              line=pasted.target * ~box, fill=pasted.target * box),
    ]  # fmt: skip


# What these share


def busiest(classes: Tensor, axis: int = 2) -> int:
    """The slice of the first of `(B, X, Y, Z)` with the most foreground."""
    return int((classes[0] > 0).movedim(axis, 0).flatten(1).sum(1).argmax())


def compared(net: torch.nn.Module, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """What the decoder's last block is given for one view, `(B, K, ...)`, and how far another is from it, `(K,)`."""
    kept: list[Tensor] = []
    handle = decoder_blocks(net)[0].register_forward_pre_hook(lambda block, inputs: kept.extend(inputs))
    at_rest(net, torch.cat([first, second]))
    handle.remove()
    one, two = kept[0].chunk(2)
    return one, (one - two).abs().mean((0, 2, 3, 4)) / (one.abs() + two.abs()).mean((0, 2, 3, 4))


def prepared(kind: str, folder: Path) -> list[str]:
    """Phantoms of a kind, ready to train on: the settings that name them."""
    source, out, splits = folder / kind, folder / f"{kind}-prepared", folder / f"{kind}.json"
    if not splits.exists():
        write_dataset(source, kind, labelled=5, unlabelled=8, seed=7)
        config = parse(DatasetConfig, merge([settings_file(f"data/phantom_{kind}.yaml")])["data"], where="data")
        write_split(
            splits, make_split(prepare(source, out, config, workers=0), Wish(labelled=3, val=1, test=1, seed=SEED))
        )
    return [f"data.root={out}", f"data.splits={splits}"]


def trained(name: str, kind: str, settings: Sequence[str], folder: Path) -> Scene:
    """A method after a short run."""
    short = [
        f"train.iterations={STEPS + 1}",
        f"train.seed={SEED}",
        "train.labelled_batch=2",
        "train.lr=0.005",
    ]
    short += ["train.unlabelled_batch=2"] if name != "supervised" else []
    files = [settings_file(f"data/phantom_{kind}.yaml"), settings_file(f"method/{name}.yaml")]
    config = load_run_config(files, [*prepared(kind, folder), *short, *settings])
    if "ema_decay" in type(config.method).model_fields:  # teachers of a short run must not lag behind
        config = config.model_copy(update={"method": config.method.model_copy(update={"ema_decay": 0.9})})
    trainer = make_trainer(config, folder, torch.device("cpu"))
    streams = make_streams(config, open_data(config))
    batches = trainer.batches(*streams, last=STEPS + 1)
    for _ in range(STEPS):
        trainer.train_step(next(batches))
    return Scene(trainer.method, next(batches), Progress(STEPS, STEPS + 1))


def settings_file(name: str) -> Path:
    found = bundled(name)
    assert found is not None, name
    return found


def picture(panels: Sequence[Panel]) -> Image.Image:
    """Panels in a row, on white, so that it can be read on a dark page too."""
    side = min(PANEL, WIDTH // len(panels))
    lines = [textwrap.wrap(panel.title, side // 7) for panel in panels]
    head = 16 * max(map(len, lines)) + 8
    figure = Figure(figsize=(side * len(panels) / DPI, (side + head) / DPI), dpi=DPI, facecolor="white")
    gap = 6
    for number, (panel, words) in enumerate(zip(panels, lines, strict=True)):
        left, width = side * number + gap / 2, side - gap
        whole = side * len(panels), side + head
        axes = figure.add_axes((left / whole[0], gap / 2 / whole[1], width / whole[0], width / whole[1]))
        draw(axes, panel)
        figure.text(left / whole[0], 1 - 5 / whole[1], "\n".join(words), fontsize=9, va="top", color="#20272d")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return Image.open(buffer).convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)


def draw(axes: Any, panel: Panel) -> None:
    """One panel; voxels are shown as they are."""
    axes.set_axis_off()
    grey = panel.cut(panel.image)
    low, high = grey_window(panel.cut(panel.image if panel.beside is None else panel.beside).numpy())
    axes.imshow(grey, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
    if panel.fill is not None:
        classes = panel.cut(panel.fill)
        shown = [class_colour(value) for value in range(1, int(classes.max()) + 1)]
        axes.imshow(coloured(classes, *shown, alpha=0.5), interpolation="nearest")
    if panel.heat is not None:
        heat = panel.cut(panel.heat)
        axes.imshow(heat, cmap=HEAT, vmin=0, vmax=max(float(heat.max()), 1e-6), interpolation="nearest")
    for mask, colour in panel.marks:
        axes.imshow(coloured(panel.cut(mask), colour, alpha=0.65), interpolation="nearest")
    if panel.hidden is not None:
        axes.imshow(coloured(panel.cut(panel.hidden), "black", alpha=0.65), interpolation="nearest")
    if panel.line is not None:
        classes = panel.cut(panel.line)
        for value in range(1, int(classes.max()) + 1):
            outline(axes, classes == value, class_colour(value), "solid", 1.4)
    for box in panel.boxes:
        outline(axes, panel.cut(box), "white", "dashed", 1.2)
    for x, y, colour in panel.points:
        axes.plot(x, y, "o", markersize=4, color=colour, markeredgecolor="white", markeredgewidth=0.6)


def coloured(classes: Tensor, *shown: str, alpha: float) -> Any:
    """Classes `(Y, X)` in their colours, from that of class 1 on, `(Y, X, 4)`; the background is clear."""
    table = [to_rgba("black", 0), *(to_rgba(colour, alpha) for colour in shown)]
    return np.array(table)[classes.long().numpy()]


def outline(axes: Any, mask: Tensor, colour: str, style: str, width: float) -> None:
    """A line around a mask, with a dark rim that sets it off from bright tissue."""
    if not mask.any():
        return
    down, across = mask.shape
    padded = F.pad(mask.float(), (1, 1, 1, 1))
    line = axes.contour(np.arange(-1, across + 1), np.arange(-1, down + 1), padded, levels=[0.5], colors=[colour],
                        linestyles=style, linewidths=width)  # fmt: skip
    line.set_path_effects([withStroke(linewidth=width + 1.2, foreground="black")])


def main(names: Sequence[str]) -> None:
    torch.set_num_threads(1)  # sums in one order, whatever the machine
    with tempfile.TemporaryDirectory() as folder:
        for name in names or FIGURES:
            kind, settings, panels = FIGURES[name]
            path = HERE / f"{name}.png"
            scene = trained(name, kind, settings, Path(folder))
            with torch.no_grad():
                picture(panels(scene)).save(path, optimize=True)
            print(f"{path}: {path.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main(sys.argv[1:])
