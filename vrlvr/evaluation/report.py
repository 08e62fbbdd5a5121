"""The report of a run: report.html, one file that needs nothing else, and results.md.

Both are made from what the run left behind, each part optional: results.json and gains.json (see tables.py),
metrics.jsonl (see run_log.py), config.yaml, run.json (any JSON object: command, seed, versions, hardware, ...), and the
videos rollouts_before and rollouts_after (GIF or MP4).
"""

import base64
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from vrlvr.atomic_write import write_text
from vrlvr.errors import UserError
from vrlvr.evaluation import curves, page
from vrlvr.evaluation.charts import Estimate, interval_chart
from vrlvr.evaluation.metrics import Gain, Row
from vrlvr.evaluation.run_folder import Run, gains_of, measured, read_run
from vrlvr.evaluation.tables import COLUMNS, markdown, systems_of, task_title, tasks_of

STAGES = {"base": "before any training", "sft": "after fine-tuning", "rl": "after reinforcement"}
_COLOURS = {"base": 7, "sft": 1, "rl": 0}
_CURVES = "Faint: each update; line: moving average"
_MEDIA = {".gif": "image/gif", ".mp4": "video/mp4"}


def write_report(run_dir: Path) -> Path:
    """Writes run_dir/report.html and returns its path. Missing inputs are named in the page.

    Raises UserError if run_dir is no folder or one of its files is damaged.
    """
    run = read_run(Path(run_dir))
    scalars = curves.scalars_of(run.metrics)
    success, reward = curves.success_groups(scalars), curves.reward_groups(scalars)
    component, sft = curves.component_groups(scalars), curves.sft_groups(scalars)
    health = curves.health_groups(scalars)
    other = curves.other_groups(scalars, [*success, *reward, *component, *sft, *health])

    def chart_section(title: str, groups: Sequence[curves.Group], note: str, shared: bool = False) -> str:
        cards = curves.chart_cards(groups, scalars, shared)
        return page.section(title, page.multiples(cards), note) if cards else ""

    sections = [
        _header(run),
        _headline(run),
        _by_task(run),
        _videos(run.folder),
        "" if scalars else page.section("Training", page.missing("No metrics.jsonl: there are no curves to show.")),
        chart_section("Success during RL", success, f"{_CURVES}; dots: validation puzzles.", shared=True),
        chart_section("Reward during RL", reward, f"Mean over the rollouts of an update. {_CURVES}.", shared=True),
        chart_section(
            "Reward by component", component, "The verifier's dense terms, before their weights.", shared=True
        ),
        chart_section("Supervised fine-tuning", sft, "Flow matching on the planner's videos."),
        chart_section("Health of the updates", health, "With unchanged weights the ratio is exactly 1."),
        _seconds(run, scalars),
        _table(run.rows),
        _provenance(run),
        page.folded(f"All other scalars ({len(other)})", page.multiples(curves.chart_cards(other, scalars)))
        if other
        else "",
    ]
    target = run.folder / "report.html"
    write_text(target, page.page(f"VideoRLVR · {run.folder.resolve().name}", filter(None, sections)))
    return target


def write_results_md(run_dir: Path) -> Path:
    """Writes run_dir/results.md (table, gains, how it was made) and returns its path. Raises UserError as above."""
    run = read_run(Path(run_dir))
    if not run.rows:
        raise UserError(f"{run.folder / 'results.json'} is missing or empty; run `vrlvr eval` first")
    lines = ["# Results", "", _reading(run.rows), "", markdown(run.rows)]
    if gains := gains_of(run):
        lines += [f"Gain of {_compared(gains[0])} in success rate:", ""]
        lines += [f"- {_gain_title(gain)}: {_gain_text(gain)}" for gain in gains]
        lines.append("")
    if run.facts:
        lines += ["How it was made:", ""]
        lines += [f"- {name}: {value}" for name, value in _flat(run.facts).items()]
        lines.append("")
    target = run.folder / "results.md"
    write_text(target, "\n".join(lines))
    return target


def _gain_title(gain: Gain) -> str:
    return "Mean of the tasks" if gain["task"] == "mean" else task_title(gain["task"])


def _gain_text(gain: Gain) -> str:
    kind = "paired by puzzle" if gain["paired"] else "unpaired"
    return f"{_gain_short(gain)} ({kind}, {gain['num_puzzles']} puzzles)"


def _gain_short(gain: Gain) -> str:
    low, high = gain["gain_ci95"]
    return f"{gain['gain']:+.1f} points [{low:+.1f}, {high:+.1f}]"


def _reading(rows: Sequence[Row]) -> str:
    """How to read the table."""
    puzzles = sorted({row["num_puzzles"] for row in rows if row["source"] == "measured" and row["num_puzzles"]})
    counts = " or ".join(map(str, puzzles)) or "no"
    return (
        f"Percent, on {counts} held-out puzzles a task. Prec, Rec: overlap with the planner's solution; F1 of both; "
        "SR: solved by the rules, whatever the path, with its 95 % interval (Wilson, puzzles as clusters). "
        "Source `published`: as printed elsewhere, on other puzzles, so not comparable digit by digit."
    )


def _header(run: Run) -> str:
    parts = [str(run.facts[name]) for name in ("command",) if name in run.facts]
    parts += [f"{name} {run.facts[name]}" for name in ("seed", "started") if name in run.facts]
    name = escape(run.folder.resolve().name)
    return f"<header><h1>VideoRLVR · {name}</h1>{page.paragraph(' · '.join(parts), 'note') if parts else ''}</header>"


def _headline(run: Run) -> str:
    tiles = []
    for system, text in STAGES.items():
        if by_task := measured(run.rows, system):
            mean = sum(row["success_rate"] for row in by_task.values()) / len(by_task)
            tiles.append((f"{mean:.1f}\u00a0%", f"{system}: {text}", False))
    if not tiles:
        return page.missing("No results.json with base, sft or rl: nothing was evaluated yet.")
    gains = gains_of(run)
    for gain in gains[:1]:
        low, high = gain["gain_ci95"]
        tiles.append((f"{gain['gain']:+.1f}", f"points, {_compared(gain)} [{low:+.1f},\u00a0{high:+.1f}]", True))
    note = "Held-out puzzles solved by the rules; mean of the tasks."
    if gains:
        note += (
            " The gain is paired puzzle by puzzle."
            if gains[0]["paired"]
            else " The gain is unpaired, from the rows alone."
        )
    return page.tiles(tiles) + page.paragraph(note, "note")


def _by_task(run: Run) -> str:
    per_system = {system: by_task for system in STAGES if (by_task := measured(run.rows, system))}
    if not per_system:
        return ""
    rows = [row for by_task in per_system.values() for row in by_task.values()]
    high = min(100.0, 1.1 * max((row["success_rate_ci95"] or [0.0, row["success_rate"]])[1] for row in rows))
    gains = gains_of(run)
    asides = {gain["task"]: _gain_short(gain) for gain in gains}
    figures = []
    for task in tasks_of(rows):
        estimates = [_estimate(by_task[task]) for by_task in per_system.values() if task in by_task]
        chart = interval_chart(task_title(task), estimates, high)
        figures.append(page.figure(task_title(task), chart, aside=asides.get(task, "")))
    return page.section(
        "Success rate by task",
        page.multiples(figures),
        "Dot: success rate in percent; bar: 95 % interval." + (f" Gains: {_compared(gains[0])}." if gains else ""),
    )


def _compared(gain: Gain) -> str:
    return f"RL over {'SFT' if gain['before'] == 'sft' else 'the model it started from'}"


def _estimate(row: Row) -> Estimate:
    bounds = row["success_rate_ci95"]
    interval = None if bounds is None else (bounds[0], bounds[1])
    return Estimate(row["system"], row["success_rate"], interval, _COLOURS[row["system"]])


def _videos(folder: Path) -> str:
    figures = []
    for name, title in (("rollouts_before", "Before RL"), ("rollouts_after", "After RL")):
        found = [folder / f"{name}{suffix}" for suffix in _MEDIA if (folder / f"{name}{suffix}").is_file()]
        content = _embedded(found[0], title) if found else page.missing(f"No {name}.gif or .mp4 in the run's folder.")
        figures.append(page.figure(title, content))
    return page.section(
        "Rollouts on held-out puzzles", page.multiples(figures, widest_px=560), "The same puzzles and noise."
    )


def _embedded(path: Path, title: str) -> str:
    kind = _MEDIA[path.suffix]
    source = f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
    if kind.startswith("video"):
        return f'<video controls autoplay loop muted playsinline src="{source}"></video>'
    return f'<img alt="{escape(title)}: generated videos" src="{source}">'


def _seconds(run: Run, scalars: curves.Scalars) -> str:
    """Seconds of each phase, and of each part of one update."""
    if not run.metrics:
        return ""
    spent: Counter[str] = Counter()
    before = 0.0
    for row in run.metrics:
        spent[row["phase"]] += max(0.0, row["seconds"] - before)
        before = row["seconds"]
    parts = {
        name.removeprefix("seconds_"): sum(y for _, y in points) / len(points)
        for (phase, name), points in scalars.items()
        if phase == "grpo" and name.startswith("seconds_")
    }
    content = _bars("phase", spent)
    if parts:
        content += _bars("part of one RL update (mean)", parts)
    return page.section(
        "Where the time goes", content, "Seconds of wall time; what precedes a line of the log counts to it."
    )


def _bars(name: str, seconds: Mapping[str, float]) -> str:
    longest, total = max(1e-9, *seconds.values()), max(1e-9, sum(seconds.values()))
    lines = "".join(
        f"<tr><td>{escape(part)}</td><td>{value:.3g}</td><td>{value / total:.0%}</td>"
        f'<td class="wide"><span class="share" style="width:{100 * value / longest:.1f}%"></span></td></tr>'
        for part, value in seconds.items()
    )
    head = f"<tr><th>{escape(name)}</th><th>s</th><th>share</th><th></th></tr>"
    return f'<div class="scroll"><table>{head}{lines}</table></div>'


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return page.section("Results", page.missing("No results.json: there is no table to show."))
    tasks = tasks_of(rows)
    cells = {(row["system"], row["source"], row["task"]): row for row in rows}
    groups = "".join(
        f'<th class="group" colspan="{len(COLUMNS) + 1}">{escape(task_title(task))}</th>' for task in tasks
    )
    names = "".join(f"<th{_group(i)}>{name}</th>" for _ in tasks for i, name in enumerate([*COLUMNS, "95 %"]))
    lines = []
    for system, source in systems_of(rows):
        line = "".join(_cells(cells.get((system, source, task))) for task in tasks)
        dim = ' class="dim"' if source == "published" else ""
        lines.append(f"<tr{dim}><td>{escape(system)}</td><td>{source}</td>{line}</tr>")
    head = f"<tr><th></th><th></th>{groups}</tr><tr><th>system</th><th>source</th>{names}</tr>"
    table = f'<div class="scroll"><table>{head}{"".join(lines)}</table></div>'
    return page.section("Results", table, _reading(rows).replace("`", ""))


def _cells(row: Row | None) -> str:
    values = [""] * (len(COLUMNS) + 1)
    if row is not None:
        values = [f"{row[key]:.1f}" for key in COLUMNS.values()]  # type: ignore[literal-required]
        bounds = row["success_rate_ci95"]
        values.append("" if bounds is None else f"<small>{bounds[0]:.1f}–{bounds[1]:.1f}</small>")
    return "".join(f"<td{_group(i)}>{value}</td>" for i, value in enumerate(values))


def _group(column: int) -> str:
    return ' class="group"' if column == 0 else ""


def _provenance(run: Run) -> str:
    facts = page.definitions(_flat(run.facts)) if run.facts else page.missing("No run.json: versions are unknown.")
    if run.config:
        facts += page.folded("Resolved configuration (config.yaml)", f"<pre>{escape(run.config)}</pre>")
    else:
        facts += page.missing("No config.yaml: the configuration is unknown.")
    return page.section("How it was made", facts)


def _flat(facts: Mapping[str, Any]) -> dict[str, str]:
    """One line a fact; what is nested is joined: {"versions": {"torch": "2.11"}} -> versions: torch 2.11."""
    return {
        name: ", ".join(f"{key} {inner}" for key, inner in value.items())
        if isinstance(value, dict)
        else ", ".join(map(str, value))
        if isinstance(value, list)
        else str(value)
        for name, value in facts.items()
    }
