"""The figure of a bank that grows after training: the loss of one trained model by the sentences that it can read."""

from .rows import Rows

WHERE = ("val", "wiki-49M")
# The banks of 1.6.20: sentences, and the experiment of the row.
BANKS = (
    (262_144, "1.6.20, a quarter of its bank"), (524_288, "1.6.20, half of its bank"), (1_048_576, "1.6.20"),
    (1_915_266, "1.6.20, its bank and the training text"),
)  # fmt: skip


def data(rows: Rows) -> dict:
    plain = rows.result("1.6.0", "plain", "val_loss", *WHERE)
    points = [
        {"sentences": sentences, "loss": row.value}
        for sentences, name in BANKS
        if (row := rows.result(name, "memory", "val_loss", *WHERE))
    ]
    return {"plain": plain.value if plain else None, "points": points}


def draw(made: dict, colors) -> str:
    from .figures import finish, new_figure

    figure = new_figure(5.2, 2.7, colors)
    axes = figure.add_subplot()
    x, y = ([point[name] for point in made["points"]] for name in ("sentences", "loss"))
    axes.plot(x, y, "o-", color=colors.memory, label="1.6.20, trained with a million sentences")
    for sentences, loss in zip(x, y, strict=True):
        axes.annotate(
            f"{loss:.3f}",
            (sentences, loss),
            (0, 6),
            ha="center",
            textcoords="offset points",
            fontsize=8,
            color=colors.text,
        )
    if made["plain"]:
        axes.axhline(made["plain"], linestyle="--", color=colors.plain, label="plain model, 1.6.0")
    axes.set_xscale("log", base=2)
    axes.margins(x=0.08, y=0.15)
    axes.set_xticks(x, [f"{sentences / 1e6:.2f}" for sentences in x], minor=False)
    axes.set_xlabel("million sentences in the bank, which was changed after training")
    axes.set_ylabel("validation loss, nats a token")
    axes.legend(frameon=False, fontsize=8, labelcolor=colors.text)
    return finish(figure, axes, colors)
