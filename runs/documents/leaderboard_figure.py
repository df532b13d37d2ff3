"""The leaderboard as a picture: experiments with their own flags on one text, loss and answers, with intervals."""

from .leaderboard import OWN_FLAGS, PLAIN, STRONG_PLAIN, equal_time_gap, first, half, plain_of
from .rows import Rows

ARMS = ("memory", "plain")
CHINESE = {
    "not shuffled": "未测打乱", "loss minus that of {}{}, nats a token": "Loss 减去 {} 的 Loss{}, nat/token",
    " ({}: of {})": " ({} 减去 {} 的)", "right object questions, %": "对象题答对, %",
    "memory, with 95 % interval": "记忆, 95% 区间", "plain": "普通模型",
    "one seed, no interval of the loss": "单个种子, Loss 没有区间", "bank shuffled": "打乱知识库",
    "against a plain model that trained for as long": "与训练同样长时间的普通模型比",
}  # fmt: skip


def data(rows: Rows) -> list[dict]:
    """A line for each experiment with a loss in the protocol, the best loss first.

    Each loss is compared with that of its plain model, as in the table; without that there is no line.
    """
    found = []
    for node in rows.tree:
        name = node["number"]
        loss = first(rows, name, ("plain",) if name == PLAIN else ARMS, "val_loss", (OWN_FLAGS,))
        plain = first(rows, plain_of(rows, name), ("plain",), "val_loss", (OWN_FLAGS,))
        if loss is None or plain is None:
            continue
        answer, shuffled = (
            first(rows, name, arms, "object", (OWN_FLAGS,)) for arms in ((loss.arm,), ("shuffled",))
        )  # fmt: skip
        found.append({
            "number": name, "plain": plain.experiment, "arm": loss.arm, "loss": loss.value,
            "gap": loss.value - plain.value, "half": half(loss),
            "seeds": max(1, len(loss.seeds)), "time": equal_time_gap(rows, name, ARMS, OWN_FLAGS),
            "object": answer and answer.value, "shuffled": shuffled and shuffled.value,
            "object_half": answer and half(answer), "shuffled_half": shuffled and half(shuffled),
        })  # fmt: skip
    return sorted(found, key=lambda line: line["loss"])


def draw_chinese(lines: list[dict], colors) -> str:
    return draw(lines, colors, CHINESE)


def draw(lines: list[dict], colors, words: dict[str, str] | None = None) -> str:
    """The picture; `words` are its texts in another language.

    Text is laid out in the font that comes with matplotlib, which has no Chinese, so wide letters get room by spaces.
    """
    from matplotlib.lines import Line2D

    from .figures import finish, finish_axes, new_figure

    def say(text: str) -> str:
        told = (words or {}).get(text, text)
        return told + " " * sum(not letter.isascii() for letter in told) if "{}" not in told else told

    figure = new_figure(7.6, 1.3 + 0.27 * len(lines), colors)
    losses, answers = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    losses.axvline(0, color=colors.grid, lw=1)
    for place, line in enumerate(lines):
        color = getattr(colors, line["arm"])
        losses.errorbar(line["gap"], place, xerr=line["half"], fmt="o", color=color, ms=5, lw=1.2,
                        mfc=color if line["half"] else "none")  # fmt: skip
        if line["time"] is not None:
            losses.plot(line["time"], place, "x", color=color, ms=6)
        for value, wide, filled in (("object", "object_half", True), ("shuffled", "shuffled_half", False)):
            if line[value] is not None:
                own = color if filled else colors.counterfactual
                answers.errorbar(line[value], place, xerr=line[wide], fmt="o", color=own, ms=5, lw=1.2,
                                 mfc=own if filled else "none")  # fmt: skip
        if line["arm"] == "memory" and line["object"] is not None and line["shuffled"] is None:
            side, align = (-1, "right") if line["object"] > 50 else (1, "left")
            edge = line["object"] + side * (line["object_half"] or 0)
            answers.annotate(say("not shuffled").strip(), (edge, place), (8 * side, 0), textcoords="offset points",
                             ha=align, va="center", fontsize=7, color=colors.text)  # fmt: skip
    names = [f"{line['number']}, n {line['seeds']}: {line['loss']:.3f} ({line['gap']:+.3f})" for line in lines]
    losses.set_yticks(range(len(lines)), names)
    losses.set_ylim(len(lines) - 0.5, -0.5)
    others = [line["number"] for line in lines if line["plain"] == STRONG_PLAIN]
    ordered = sorted(others, key=lambda number: [int(part) for part in number.split(".")])
    others = ", ".join(others) if len(others) < 3 else f"{ordered[0]} … {ordered[-1]}"
    exception = "\n" + say(" ({}: of {})").strip().format(others, STRONG_PLAIN) if others else ""
    losses.set_xlabel(say("loss minus that of {}{}, nats a token").format(PLAIN, exception))
    answers.set_xlabel(say("right object questions, %").strip())
    answers.set_xlim(0, 102)

    def mark(label: str, color: str, **style) -> Line2D:
        return Line2D([], [], ls="", color=color, label=say(label), **({"marker": "o", "ms": 5} | style))

    handles = [
        mark("memory, with 95 % interval", colors.memory), mark("plain", colors.plain),
        mark("one seed, no interval of the loss", colors.text, mfc="none"),
        mark("bank shuffled", colors.counterfactual, mfc="none"),
        mark("against a plain model that trained for as long", colors.memory, marker="x", ms=6),
    ]  # fmt: skip
    figure.legend(handles=handles, loc="outside upper left", ncols=3, fontsize=8, frameon=False, labelcolor=colors.text)
    finish_axes(answers, colors, "x")
    return finish(figure, losses, colors, "x")
