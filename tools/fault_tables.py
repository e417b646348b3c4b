"""The tables of the fault bench: how often each fault was named, and of what healthy models were accused."""

from collections import Counter
from statistics import median
from typing import Sequence

from fault_cases import Result

NAMED = 0.95  # of the faults, first
ACCUSED = 0.05  # of the healthy models, at most
LEAST_HEALTHY = 20  # models, for that to be judged


def faults_table(results: Sequence[Result]) -> str:
    """Markdown. What a fault costs is the median and the least over its plants, in dB of PSNR against the twin."""
    heads = ("fault", "planted", "named first", "named at all", "otherwise first", "costs (dB)")
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for fault in dict.fromkeys(result.fault for result in results):
        of_fault = [result for result in results if result.fault == fault]
        others = Counter(first(result) for result in of_fault if first(result) != fault)
        words = ", ".join(f"{name} {count}" for name, count in others.most_common())
        lines.append(
            f"| {fault} | {len(of_fault)} | {sum(first(one) == fault for one in of_fault)} "
            f"| {sum(fault in one.findings for one in of_fault)} | {words} | {_costs(of_fault)} |"
        )
    named = sum(first(result) == result.fault for result in results)
    at_all = sum(result.fault in result.findings for result in results)
    return "\n".join([*lines, f"| all | {len(results)} | {named} | {at_all} | | |"])


def healthy_table(results: Sequence[Result]) -> str:
    """Markdown. Beside each model: by what it was accepted as healthy, before it was diagnosed."""
    lines = ["| healthy | PSNR (dB) | without learning | accepted by | accused of |", "|---|---|---|---|---|"]
    for result in results:
        numbers = f"{_number(result.psnr)} | {_number(result.twin_psnr)}"
        lines.append(f"| {result.kind} | {numbers} | {result.health} | {', '.join(accusations(result))} |")
    return "\n".join(lines)


def accusations(result: Result) -> list[str]:
    """Of a healthy model: what its diagnosis finds, what the watch found while it trained, or why neither could."""
    words = [*result.findings, *(f"{name} (while training)" for name in result.watched)]
    return words + ([f"error: {result.error}"] if result.error else [])


def first(result: Result) -> str:
    if result.error:
        return f"error: {result.error}"
    return result.findings[0] if result.findings else "nothing"


def reached(results: Sequence[Result], least_healthy: int = LEAST_HEALTHY) -> bool:
    """Whether the targets are: NAMED of the faults first, no more than ACCUSED of the healthy models accused, and,
    where there are both, enough of these."""
    faults, sound = split(results)
    named = sum(first(result) == result.fault for result in faults)
    accused = sum(bool(accusations(result)) for result in sound)
    enough = not faults or not sound or len(sound) >= least_healthy
    return named >= NAMED * len(faults) and accused <= ACCUSED * len(sound) and enough


def split(results: Sequence[Result]) -> tuple[list[Result], list[Result]]:
    """(faults, healthy ones); without plants that cost nobody anything, and models that no training made healthy."""
    counted = [one for one in results if one.visible or one.error]
    return [one for one in counted if one.fault != "healthy"], [one for one in counted if one.fault == "healthy"]


def unseen(results: Sequence[Result]) -> list[str]:
    """Plants that no attempt made visible."""
    return [
        f"{one.fault} {one.number}: {one.twin_psnr - one.psnr:.2f} dB"
        for one in results
        if one.fault != "healthy" and not (one.visible or one.error)
    ]


def never_healthy(results: Sequence[Result]) -> list[str]:
    """Kinds that no training made healthy."""
    unfit = [one for one in results if one.fault == "healthy" and not (one.visible or one.error)]
    return [f"{one.kind}: {one.health}" for one in unfit]


def _costs(results: Sequence[Result]) -> str:
    lost = [one.twin_psnr - one.psnr for one in results if one.psnr is not None and one.twin_psnr is not None]
    broken = sum(one.psnr is None and not one.error for one in results)
    words = [f"{median(lost):.1f} (least {min(lost):.1f})"] if lost else []
    return ", ".join(words + ([f"{broken} not finite"] if broken else []))


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
