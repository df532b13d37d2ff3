"""The published data sets that `python -m dataset.fetch` knows: where they are, their licence, and what they become.

A size or checksum stands here only where two independent copies of it agree. Where there is none, the checksum that the
place itself states is compared (the hub states one for every file), and the size is the one that it announces.
"""

from dataclasses import dataclass

HUB = "hub:"  # hub:OWNER/DATASET@REVISION/PATH


@dataclass(frozen=True)
class File:
    """A file of a source: its address (https:, file: or `HUB`), its size in bytes and sha256 where they are known."""

    address: str
    size: int | None = None
    sha256: str | None = None

    @property
    def name(self) -> str:
        return self.address.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Source:
    """A data set.

    Attributes:
        megabytes: about what is downloaded; None: unknown until the place says it.
        makes: the files that it becomes, in the folder --out.
        convert: the function of dataset/public.py that makes them; None: the downloaded file as it is.
        flag: what the files are given to.
    """

    what: str
    licence: str
    files: tuple[File, ...]
    makes: tuple[str, ...]
    flag: str
    convert: str | None = None
    megabytes: int | None = None


MINIMIND = HUB + "jingyaogong/minimind_dataset@312afb4f76391145c6902f765bb51691c09a12f5/"
STORIES = HUB + "roneneldan/TinyStories@f54c09fd23315a6f9c86f9dc80f725de7d8f9c64/TinyStoriesV2-GPT4-"
WIKITEXT = HUB + "Salesforce/wikitext@b08601e04326c79dfdd32d625aee71d232d685c3/wikitext-103-raw-v1/"
WIKIPEDIA = HUB + "wikimedia/wikipedia@cf26be8eef6bc935da5d2281be5aad4813e49e90/20231101.simple/"
POPQA = HUB + "akariasai/PopQA@098765c79ea10a2cb19c828324e33281b8336ec0/"
ROME = "https://rome.baulab.info/data/dsets/"
GITHUB = "https://github.com/"
SETS = "--language_sets"

SOURCES = {
    "minimind": Source(
        "MiniMind's text for pretraining, Chinese and English", "Apache-2.0 (its card)",
        (File(MINIMIND + "pretrain_t2t_mini.jsonl", 1241043656,
              "6dd6716c84ab36897bdbfc7f88e04f4441c48c1ab7ecee88ce0b0e7d4685560c"),),
        ("merged_pretrain.jsonl",), "--data_path", megabytes=1241,
    ),
    "minimind_chat": Source(
        "MiniMind's conversations for fine-tuning", "Apache-2.0 (its card)",
        (File(MINIMIND + "sft_t2t_mini.jsonl", 1739201170,
              "abb1e76b2056e14728beb78db96b7b3c491a0bef1ed3e34a9b381b28f29fa518"),),
        ("minimind_chat.jsonl",), "--data_path", megabytes=1739,
    ),
    "tinystories": Source(
        "short stories in simple words, written by a model", "CDLA-Sharing-1.0",
        (File(STORIES + "train.txt"), File(STORIES + "valid.txt")),
        ("tinystories.jsonl", "tinystories_val.jsonl"), "--data_path, --val_path", "stories", 2250,
    ),
    "fineweb_edu": Source(
        "web pages of use for learning: one of 14 files of the sample of 10 billion tokens", "ODC-By 1.0",
        (File(HUB + "HuggingFaceFW/fineweb-edu@main/sample/10BT/000_00000.parquet"),),
        ("fineweb_edu.parquet",), "--data_path", megabytes=2150,
    ),
    "wikitext": Source(
        "good and featured articles of Wikipedia, WikiText-103 raw", "CC BY-SA 3.0, GFDL",
        (File(WIKITEXT + "train-00000-of-00002.parquet", 156987808,
              "74da360f23826045b3e6ac6375411fdb15f003030aa74f2596ed08b857cb9212"),
         File(WIKITEXT + "train-00001-of-00002.parquet", 157088770,
              "ba090ac30dbf5461e8dcbdd1a1b8e6f3cf9c2c756d64f0c1220450acd514f720"),
         File(WIKITEXT + "validation-00000-of-00001.parquet", 657209,
              "204929b7ff9d6184953f867dedb860e40aa69c078fc1e54b3baaa8fb28511c4c")),
        ("wikitext.jsonl", "wikitext_val.jsonl"), "--data_path, --val_path", "wikitext", 315,
    ),
    "wikipedia": Source(
        "Wikipedia in Simple English, 2023: articles to learn, and sentences of other articles for the bank",
        "CC BY-SA 3.0, GFDL",
        (File(WIKIPEDIA + "train-00000-of-00001.parquet", 156885218,
              "31bded16768a47c286becd292079122f5d7d4397a17b87d4250a00ccd581e6f0"),),
        ("wikipedia.jsonl", "wikipedia_val.jsonl", "wikipedia_knowledge.jsonl"),
        "--data_path, --val_path, --database_init_path", "wikipedia", 157,
    ),
    "trex": Source(
        "T-REx: sentences of Wikipedia abstracts with their Wikidata triples", "CC BY-SA 4.0",
        (File("https://ndownloader.figshare.com/files/8760241"),),
        ("sentence_trex_data.json",), "--database_init_path", "trex",
    ),
    "counterfact": Source(
        "CounterFact: facts, each with a false object to edit in", "MIT (its repository)",
        (File(ROME + "counterfact.json"),),
        ("counterfact_knowledge.jsonl", "counterfact_edit.jsonl"), "--database_init_path, --counterfact_path",
        "counterfact", 45,
    ),
    "zsre": Source(
        "zsRE: questions of two wordings, as MEND split them", "MIT (its repository)",
        (File(ROME + "zsre_mend_eval.json"),),
        ("zsre_knowledge.jsonl", "zsre_object.jsonl", "zsre_edit.jsonl", "zsre_insert.jsonl"),
        "--database_init_path, --object_path, --zsre_path, --insert_path", "zsre",
    ),
    "popqa": Source(
        "PopQA: questions about rare and well-known things", "MIT (its repository)",
        (File(POPQA + "test.tsv", 5205200, "9a5227f41bff0e4c331d4a774d946b12f95307892b58f860a9606ef356e6089b"),),
        ("popqa_knowledge.jsonl", "popqa_object.jsonl", "popqa_insert.jsonl"),
        "--database_init_path, --object_path, --insert_path", "popqa", 5,
    ),
    "pararel": Source(
        "ParaRel: facts of T-REx, each asked in many wordings", "MIT",
        (File(GITHUB + "yanaiela/pararel/archive/845c42a218d9d26ae9d2cc9ba2ba780741c4e57e.zip"),),
        ("pararel_knowledge.jsonl", "pararel_object.jsonl"), "--database_init_path, --pararel_path", "pararel",
    ),
    "blimp": Source(
        "BLiMP: 67,000 pairs of a good and a bad sentence", "CC BY 4.0",
        (File(GITHUB + "alexwarstadt/blimp/archive/refs/heads/master.zip"),), ("blimp.jsonl",), SETS, "blimp",
    ),
    "lambada": Source(
        "LAMBADA, OpenAI's copy: the last word of a passage", "modified MIT (its card)",
        (File("https://openaipublic.blob.core.windows.net/gpt-2/data/lambada_test.jsonl", 1819752,
              "4aa8d02cd17c719165fc8a7887fddd641f43fcafa4b1c806ca8abc31fabdb226"),),
        ("lambada.jsonl",), SETS, "lambada", 2,
    ),
    "arc_easy": Source(
        "ARC-easy: questions of science lessons", "CC BY-SA 4.0",
        (File(HUB + "allenai/ai2_arc@210d026faf9955653af8916fad021475a3f00453/ARC-Easy/test-00000-of-00001.parquet"),),
        ("arc_easy.jsonl",), SETS, "arc_easy", 1,
    ),
    "sciq": Source(
        "SciQ: questions of science after a passage", "CC BY-NC 3.0: not for commerce",
        (File(HUB + "allenai/sciq@2c94ad3e1aafab77146f384e23536f97a4849815/data/test-00000-of-00001.parquet",
              sha256="3a719356a29b127fc54ef3c7f51a034db4bd105d5717215e8c85d2aa58d60667"),),
        ("sciq.jsonl",), SETS, "sciq", 1,
    ),
    "hellaswag": Source(
        "HellaSwag: what happens next?", "MIT (its repository)",
        (File("https://raw.githubusercontent.com/rowanz/hellaswag/master/data/hellaswag_val.jsonl"),),
        ("hellaswag.jsonl",), SETS, "hellaswag", 12,
    ),
    "piqa": Source(
        "PIQA: which of two ways reaches a goal?", "AFL 3.0 (its card)",
        (File("https://storage.googleapis.com/ai2-mosaic/public/physicaliqa/physicaliqa-train-dev.zip",
              sha256="54d32a04f59a7e354396f321723c8d7ec35cc6b08506563d8d1ffcc15ce98ddd"),),
        ("piqa.jsonl",), SETS, "piqa", 2,
    ),
    "wikitext2": Source(
        "WikiText-2 raw: the test articles", "CC BY-SA 3.0, GFDL",
        (File(WIKITEXT.replace("103", "2") + "test-00000-of-00001.parquet"),), ("wikitext2.jsonl",),
        SETS, "wikitext2", 1,
    ),
}  # fmt: skip
