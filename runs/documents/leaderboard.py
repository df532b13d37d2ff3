"""The leaderboard in experiment/README.md: every experiment in one line, from rows and scripts, in Chinese.

Of each experiment the first protocol of TEXTS with a loss counts, and of QUESTIONS with an answer. A loss is compared
with that of the plain model it builds on, under the same protocol only: protocols differ in text and in steps.
"""

import math

from runs.keep import mean_interval
from runs.significance import LEVEL, welch

from .page import Page
from .rows import Row, Rows, field_text

NOT_MEASURED = "未测"
FIRST_ROWS = "val_loss_first_"  # the beginning of its name: how many rows stands after it
PLAIN = "1.4.0"
STRONG_PLAIN = "1.6.0"  # what experiments that build on it are compared with
OWN_FLAGS = ("dev", "own-flags-42M")  # every script as it stands, on one text with one bank
# The first wordings; more of them, and the bank lacks some of what is asked; text stands before half of the questions.
ASKED_ANYHOW = ("asked-74M", "asked-74M, more wordings", "asked-74M, text before questions")
OTHER_CASE = "asked-74M, other case and absent facts"  # the training questions of 1.6.22
CROWDED = "asked-74M, crowded names and scrambled words"  # those of 1.6.35
UNSHORTENED = "asked-74M, scrambled but not shortened"  # those of 1.6.37
CALIBRATED = f"{CROWDED}, calibrated"  # in wordings that training had not seen
RECALIBRATED = f"{UNSHORTENED}, calibrated"  # by facts that the bank lacks, too
PREFERRED = f"{RECALIBRATED}, pointer_edited 3"  # edited entries are preferred by a nat more
TOGETHER = f"{RECALIBRATED} together"  # one setting, chosen by the answers of all seeds
FIXED = f"{UNSHORTENED}, pointer_scale 1.5, pointer_asked 1.5, pointer_edited 3"  # one setting for all seeds
ANYHOW = (*ASKED_ANYHOW, OTHER_CASE, CROWDED, UNSHORTENED)
# Split and protocol, the first that has a loss.
TEXTS = (
    OWN_FLAGS, ("dev", "pretraining"), ("held-out", "text-4788"), ("val", "wiki-49M"), ("dev", "mixed-49M"),
    ("dev", "text-2000"), ("dev", "text-300"), *(("dev", protocol) for protocol in ANYHOW),
)  # fmt: skip
QUESTIONS = (
    OWN_FLAGS, ("dev", "pretraining"), ("held-out", "knowledge-10k"), ("dev", "knowledge-10k"),
    ("dev", "knowledge-cpu"), *(("dev", protocol) for protocol in ANYHOW),
)  # fmt: skip
# What the rows of a protocol name instead of the number: the plain model at its best learning rate.
ALIASES = {(protocol, "1.4.0"): "AdamW, 32 heads, learning rate 1e-3" for protocol in ("wiki-49M", "mixed-49M")}
# The protocol in which the plain model trained for as long as an experiment did under another, or longer.
EQUAL_TIME = {
    ("1.5.0", "text-2000"): "text-2950",
    ("1.6.10", OWN_FLAGS[1]): f"{OWN_FLAGS[1]}, 1.36 times the steps",
} | {(name, OWN_FLAGS[1]): f"{OWN_FLAGS[1]}, 2.64 times the steps" for name in ("1.6.2", "1.6.12", "1.6.13", "1.6.14")}
# The questions of the scripts, in Chinese; one that is missing here is shown as its script has it.
ASKED = {
    "1.4.0": "普通模型: 所有记录与它相比", "1.4.7": "乘积键记忆代替前馈层, 用门控 MLP 融合, 能否降低 Loss?",
    "1.4.8": "交叉注意力选择和融合条目是否优于门控 MLP?", "1.4.8.concat": "需要注意力吗, 还是直接拼接就够?",
    "1.4.8.dropout.none": "不用 dropout 会怎样?", "1.4.8.dropout.uniform": "统一的 dropout 是否够用?",
    "1.4.8.heads4": "4 个融合头够吗?", "1.4.8.heads16": "16 个融合头更好吗?",
    "1.4.10": "余弦重排、Gumbel 选一条、滑动平均改写条目, 是否更好?",
    "1.5.0": "用 n-gram 找条目, 逐 token 阅读并复制, 模型会用记忆吗?", "1.5.1": "只有指针够吗?",
    "1.5.2": "只在层内逐 token 阅读、不用指针, 够吗?", "1.5.3": "只靠检索吗? 同样的条目按 1.4.8 的方式读",
    "1.5.4": "罕见 token 对能否找到 n-gram 漏掉的条目?", "1.5.5": "16 个 token 的条目够吗?",
    "1.5.6": "候选增到 4 倍, 正确条目会进入所读的 4 条吗?",
    "1.5.7": "保留前馈层、两层各有乘积键、条目按内容排列, 会用记忆吗?",
    "1.5.8": "归一化的查询能否找到更好的条目?", "1.5.9": "从更多候选中按 token 选择更好吗?",
    "1.5.10": "查询和子键需要更大的学习率吗?", "1.5.11": "监督检索, 乘积键能找到正确条目吗?",
    "1.5.12": "同一行共有一个罕见 token, 正确条目更好找吗?", "1.5.13": "监督检索能从更多候选中按 token 选好吗?",
    "1.5.14": "逐 token 阅读时, 模型会用监督检索找到的条目吗?", "1.5.15": "候选更多并且全部读, 答对的更多吗?",
    "1.6.0": "用今天的训练方法, 普通模型能好多少?", "1.6.1": "在新方法之上, n-gram 表还有收益吗?",
    "1.6.2": "在新方法之上, 句子知识库还有收益吗?", "1.6.3": "知识库与 n-gram 表的收益能相加吗?",
    "1.6.4": "对照: n-gram 表每头只有一行", "1.6.5": "对照: 读另一个句子", "1.6.6": "对照: 参数相同的更大普通模型",
    "1.6.7": "由文本中最新的 n-gram 决定读哪些句子, 记忆的收益更大吗?",
    "1.6.8": "由文本中最长的 n-gram 决定读哪些句子, 收益更大、训练更快吗?",
    "1.6.9": "每个位置只读知识库中与文本最长后缀相同之处后面的 token, 记忆合算吗?",
    "1.6.10": "1.6.9 的收益中, 有多少只来自紧接的一个 token?",
    "1.6.11": "再加指针, 直接复制最长后缀之后的 token, 有多少收益?",
    "1.6.12": "用罕见词找条目, 换任何说法提问, 事实都能找到、读懂并复制吗?",
    "1.6.13": "知道 token 在条目中的位置, 换任何说法都能复制到正确的词吗?",
    "1.6.14": "知道条目中哪些词文本没有说过, 能选对条目吗?",
    "1.6.15": "从训练开始就把检索分数的权重加倍, 没学过的措辞能答对更多吗?",
    "1.6.16": "再统计常见后缀之后的 token, 并按文本的主题加权, 知识库的收益更大吗?",
    "1.6.17": "疑问词的权重更小, 词对只用近处的词, 编辑之后被问的条目更常被读到吗?",
    "1.6.18": "指针偏向编辑过的条目, 编辑更常生效, 别的事实不变吗?",
    "1.6.19": "乘积键只以词和词对为输入, 能否找到事实而不增加文本 Loss?",
    "1.6.20": "条目加长到 64 个 token, 在第 2 和第 7 层阅读, 收益更大吗? 训练之后扩大知识库呢?",
    "1.6.21": "训练文本也放进知识库, 但谁都不读自己的文档, 收益多大?",
    "1.6.22": "读 16 条, 指针只偏向主语已在文中的编辑条目, 全部编辑之后别的事实不变吗?",
    "1.6.23": "1.4.8 保留前馈层, 还会落后于普通模型吗?", "1.6.24": "八层都读记忆, 还是两层就够?",
    "1.6.25": "逐 token 阅读条目, 比平均向量更有用吗?", "1.6.26": "同样的阅读, 换成 n-gram 检索, 能胜过普通模型吗?",
    "1.6.27": "两个层只读最好的 4 条, 指针仍读 16 条, 答得一样好吗?",
    "1.6.28": "指针会复制, 各层还需要读条目吗?", "1.6.29": "一层知道条目说到了哪里, 够判断真伪吗?",
    "1.6.30": "知识库旁再加一张 n-gram 表, 还能多赚多少?",
    "1.6.31": "12 条、每条 28 个 token, 够快也够好吗?",
    "1.6.32": "训练时偶尔看不到条目的词, 没学过的措辞会更多依靠检索分数吗?",
    "1.6.33": "由状态决定检索分数的权重, 普通文本就不必付出代价吗?",
    "1.6.34": "更小的 n-gram 表便宜多少, 有收益吗?",
    "1.6.35": "训练时问事实多的主语, 也用打乱的词提问, 模型会更多依靠检索吗?",
    "1.6.36": "各层不读 token, 学到的乘积键能有多快?",
    "1.6.37": "两种检索都有的一个模型, 答题像 1.6.35, 普通文本像 1.6.21 那样有收益吗?",
    "1.6.38": "每步只问四分之一的条目, 学到的乘积键还能找到事实吗?",
    "1.6.39": "只在四分之一的行里学记忆, 够不够, 快多少?",
    "1.6.40": "事实只在四分之一的行里查, 既会答题又懂文本的模型快吗?",
    "1.6.41": "事实在一半的行里查, 编辑像 1.6.37 那样准吗?",
}  # fmt: skip


def first(rows: Rows, experiment: str, arms: tuple[str, ...], measure: str, places) -> Row | None:
    """The newest row of the first place that has one."""
    for split, protocol in places:
        name = ALIASES.get((protocol, experiment), experiment)
        for arm in arms:
            if row := rows.result(name, arm, measure, split, protocol):
                return row
    return None


def plain_of(rows: Rows, experiment: str) -> str:
    """The plain model that an experiment is compared with: 1.6.0 for those that build on it, 1.4.0 for the others."""
    bases = {node["number"]: node["base"] for node in rows.tree}
    ancestor = bases.get(experiment)
    while ancestor and ancestor != STRONG_PLAIN:
        ancestor = bases.get(ancestor)
    return ancestor or PLAIN


def half(row: Row) -> float | None:
    """Half of the 95 % interval: the row's own, else that of its values; None for one seed."""
    interval = row.interval or (mean_interval(row.values) if len(row.values) > 1 else None)
    return (interval[1] - interval[0]) / 2 if interval else None


def gap_text(row: Row, other: Row | None) -> str:
    return f"{row.value - other.value:+.3f} ({row.value / other.value - 1:+.1%})" if other else NOT_MEASURED


def equal_time(rows: Rows, name: str, arms: tuple[str, ...]) -> str:
    """The loss against a plain model that trained for as long, of the first protocol that has one."""
    for split, protocol in TEXTS:
        loss, plain = pair_of_equal_time(rows, name, arms, (split, protocol))
        if loss and plain:
            worse = f"; {plain.experiment} 训练更久更差" if plain.protocol == protocol else ""
            return f"{gap_text(loss, plain)}, {protocol}{worse}"
    return NOT_MEASURED


def pair_of_equal_time(rows: Rows, name: str, arms: tuple[str, ...], where: tuple[str, str]):
    """The loss of an experiment, and the plain model's best within its time: of as many tokens, or longer."""
    split, protocol = where
    longer = EQUAL_TIME.get((name, protocol), f"{protocol}, time of {name}")
    plain = [first(rows, plain_of(rows, name), ("plain",), "val_loss", ((split, own),)) for own in (longer, protocol)]
    best = min(filter(None, plain), key=lambda row: row.value) if plain[0] else None
    return first(rows, name, arms, "val_loss", (where,)), best


def equal_time_gap(rows: Rows, name: str, arms: tuple[str, ...], where: tuple[str, str]) -> float | None:
    loss, plain = pair_of_equal_time(rows, name, arms, where)
    return loss.value - plain.value if loss and plain else None


def loss_verdict(row: Row | None, plain: Row | None) -> str | None:
    """Whether the loss is lower than the plain model's at equal tokens, over seeds; with one seed nobody knows."""
    if row is None or plain is None or row.key == plain.key:
        return None
    single = [len(own.seeds) < 2 for own in (row, plain)]
    if any(single):
        whose = "" if all(single) else "本实验只有" if single[0] else "普通模型只有"
        return f"Loss: {whose}单个种子, 不下结论"
    if min(len(row.values), len(plain.values)) < 2:
        return "Loss: 没有各个种子的数值, 不下结论"
    if welch(row.values, plain.values)[1] > LEVEL:
        return "Loss 在波动之内"
    return "Loss 更低" if row.value < plain.value else "Loss 更高"


def over_seeds(rows: Rows, name: str, arms: tuple[str, ...], shown: str | None) -> str | None:
    """Where the loss shown has one seed: also the verdict of the first other protocol that has several, in numbers."""
    if shown is None or "单个种子" not in shown:
        return shown
    for where in TEXTS:
        loss, plain = (
            first(rows, own, named, "val_loss", (where,))
            for own, named in ((name, arms), (plain_of(rows, name), ("plain",)))
        )
        verdict = loss_verdict(loss, plain)
        if verdict and "种子" not in verdict:
            seeds = f"{len(loss.values)} 对 {len(plain.values)} 个种子"
            return f"{shown}; {verdict} ({where[1]}: {loss.value - plain.value:+.3f}, {seeds})"
    return shown


def against_base(rows: Rows, node: dict, loss: Row | None) -> str:
    """The loss against that of the experiment that this one builds on, and over seeds whether it is noise."""
    base = node["base"]
    if base is None or loss is None:
        return "–" if base is None else NOT_MEASURED
    arms = ("plain",) if base == PLAIN else ("memory", "plain")
    other = first(rows, base, arms, "val_loss", ((loss.split, loss.protocol),))
    if other is None:
        return NOT_MEASURED
    word = (loss_verdict(loss, other) or "").removeprefix("Loss ")
    return f"{base}: {gap_text(loss, other)}" + (f", {word}" if "种子" not in word else "")


def bank_verdict_of(rows: Rows, name: str, arms: tuple[str, ...], answer: Row | None) -> str | None:
    """The verdict of the first protocol that asked with the bank shuffled too, named where another is shown."""
    for where in QUESTIONS:
        own, shuffled = (first(rows, name, named, "object", (where,)) for named in (arms, ("shuffled",)))
        if verdict := bank_verdict(own, shuffled):
            told = [] if answer and where[1] == answer.protocol else [where[1]]
            told += [f"打乱后 {shuffled.value:.1f}%", *filter(None, (rise_of_loss(rows, name, where),))]
            return f"{verdict} ({', '.join(told)})"
    return None


def rise_of_loss(rows: Rows, name: str, where: tuple[str, str]) -> str | None:
    """What shuffling does to the loss of the first rows, for which alone it was measured."""
    for measure in dict.fromkeys(row.measure for row in rows.results if row.measure.startswith(FIRST_ROWS)):
        own, shuffled = (rows.result(name, arm, measure, *where) for arm in ("memory", "shuffled"))
        if own and shuffled:
            return f"Loss {shuffled.value - own.value:+.3f}"
    return None


def bank_verdict(answer: Row | None, shuffled: Row | None) -> str | None:
    """Whether the answers come from the bank: they fall when it is shuffled."""
    if answer is None or shuffled is None or answer.arm != "memory":
        return None
    halves = [half(answer), half(shuffled)]
    if None in halves:
        return "没有区间, 不判断记忆是否被读取"
    if answer.value - shuffled.value > math.hypot(*halves):
        return "记忆被读取"
    return "事实未被读取"


def shuffled_loss(rows: Rows, experiment: str, loss: Row | None) -> str | None:
    """What shuffling does to the loss, where no question was asked."""
    if loss is None or loss.arm != "memory":
        return None
    row = rows.result(loss.experiment, "shuffled", "val_loss", loss.split, loss.protocol)
    return f"打乱知识库后 Loss {row.value - loss.value:+.3f}" if row else None


def seeds_text(row: Row | None) -> str | None:
    """How many seeds a loss is of."""
    return f"{max(1, len(row.seeds))} 个种子" if row else None


def line(page: Page, node: dict) -> list[str]:
    rows, name = page.rows, node["number"]
    arms = ("plain",) if name == PLAIN else ("memory", "plain")
    loss = first(rows, name, arms, "val_loss", TEXTS)
    where = ((loss.split, loss.protocol),) if loss else ()
    plain = first(rows, plain_of(rows, name), ("plain",), "val_loss", where)
    answer = first(rows, name, arms, "object", QUESTIONS)
    paraphrase = first(rows, name, arms, "edit_paraphrase", QUESTIONS)
    reworded = first(rows, name, arms, "object_reworded", QUESTIONS)
    page.used += [row for row in (loss, answer, paraphrase, reworded) if row]
    speed, memory = cost(page, name, arms, where)
    of_loss = over_seeds(rows, name, arms, loss_verdict(loss, plain))
    found = (of_loss, bank_verdict_of(rows, name, arms, answer) or shuffled_loss(rows, name, loss))
    verdict = "; ".join(filter(None, found)) or ("基线" if name == PLAIN else NOT_MEASURED)
    n = "; ".join(filter(None, (seeds_text(loss), answer and answer.n and f"{answer.n} 题"))) or "–"
    link = f"[记录]({node['record']})" if node["record"] else "无"
    against = "–" if name == PLAIN else None
    return [
        name + (" (归档)" if node["archived"] else ""), ASKED.get(name) or node["question"],
        f"{loss.value:.3f} ({loss.protocol})" if loss else NOT_MEASURED,
        against or (gap_text(loss, plain) if loss else NOT_MEASURED),
        against or equal_time(rows, name, arms), against_base(rows, node, loss),
        f"{answer.value:.1f}" if answer else NOT_MEASURED, f"{reworded.value:.1f}" if reworded else NOT_MEASURED,
        paraphrase_text(rows, paraphrase),
        speed, memory, n, verdict, link,
    ]  # fmt: skip


def paraphrase_text(rows: Rows, row: Row | None) -> str:
    """PS after an edit, and where it was measured before: a model that reads nothing has as much without the edit."""
    if row is None:
        return NOT_MEASURED
    before = rows.result(row.experiment, row.arm, "edit_paraphrase_0", row.split, row.protocol)
    return f"{row.value:.0f}" + (f" (编辑前 {before.value:.0f})" if before else "")


def cost(page: Page, name: str, arms: tuple[str, ...], where) -> tuple[str, str]:
    """tokens/s and GiB: of the benchmark of a step, on one device for all; else of the run itself, with its machine."""
    fields = {"model": name.replace(".", "_"), "batch_size": 48, "n_heads": 32}
    plain = page.rows.benchmark("step", **fields | {"model": PLAIN.replace(".", "_")})
    fields |= {"device": plain["device"]} if plain else {}
    if page.rows.benchmark("step", **fields):
        return page.field("tokens_per_s", "step", **fields), page.field("peak_gib", "step", **fields)
    speed = first(page.rows, name, arms, "tokens_per_s", (*where, *TEXTS))  # a run that shared its GPU has none
    memory = next(filter(None, (first(page.rows, name, arms, m, where) for m in ("peak_gpu_mib", "peak_mib"))), None)
    page.used += filter(None, (speed, memory))
    return (
        f"{field_text('tokens_per_s', speed.value)} ({machine(speed)}, {speed.protocol})" if speed else NOT_MEASURED,
        f"{memory.value / 1024:.1f} ({machine(memory)})" if memory else NOT_MEASURED,
    )


def machine(row: Row) -> str:
    return row.machine.removeprefix("NVIDIA ")


def leaderboard(page: Page) -> str:
    head = [
        "实验", "问题", "Loss (协议)", "相对普通模型, token 数相同", "相对普通模型, 时间相同", "相对所基于的实验",
        "对象题, %", "换措辞的对象题, %", "换措辞 PS, %", "token/s", "显存, GiB", "n", "结论", "记录",
    ]  # fmt: skip
    return page.table(head, [line(page, node) for node in page.rows.tree])
