"""Evaluation tasks: each is a function (model, tokenizer, config) -> dict, or None where its files are not given.

| task                           | file          | question                                               |
|--------------------------------|---------------|--------------------------------------------------------|
| language                       | language.py   | how well is held-out text predicted?                   |
| object, relation, verification | facts.py      | which answer to a question is the likeliest?           |
| reworded                       | facts.py      | which object, asked in other words than the bank's?    |
| exact_match                    | facts.py      | does free generation begin with the right object?      |
| cost                           | facts.py      | how many tokens and milliseconds does a question take? |
| frequency                      | facts.py      | what would guessing by frequency reach?                |
| lookup                         | lookup.py     | what would a word index reach, without a model?        |
| search_alone                   | search_alone  | what does the search answer, without the model?        |
| retrieval                      | retrieval.py  | is the gold entry found, and read?                     |
| pararel                        | pararel.py    | is the answer right, and the same, in all wordings?    |
| insertion                      | insertion.py  | are added facts found and answered, without training?  |
| absent                         | absent.py     | does it know what its bank does not hold?              |
| edits                          | edits.py      | does an edited entry change the answer, and only that? |
| overlap                        | overlap.py    | which tokens does reading help, and which does it hurt?|
| counterfact, zsre              | counterfact.py| many edits of a public benchmark, at once and alone    |
| usage                          | usage.py      | how evenly are the entries read?                       |
| generation                     | generation.py | samples, with coherence, fluency and diversity         |
| language_sets                  | language_sets | BLiMP, LAMBADA, HellaSwag, WikiText and the like       |

Those in `ON_REQUEST` run only where `--tasks` names them, or a path flag of their own is given.
`controls.py` repeats tasks with another bank or with an oracle, `report.py` prints tables, `harness.py` runs the tasks
of lm-evaluation-harness.
"""

from .absent import absent
from .config import EvalConfig
from .counterfact import counterfact, zsre
from .edits import edits
from .facts import cost, exact_match, fact_verification, frequency, object_prediction, relation_prediction, reworded
from .generation import generation
from .insertion import insertion
from .language import language
from .language_sets import language_sets
from .lookup import lookup
from .overlap import overlap
from .pararel import pararel
from .retrieval import retrieval
from .search_alone import search_alone
from .usage import bank_usage

TASKS = {
    "language": language,
    "object": object_prediction,
    "reworded": reworded,
    "exact_match": exact_match,
    "relation": relation_prediction,
    "verification": fact_verification,
    "cost": cost,
    "frequency": frequency,
    "lookup": lookup,
    "search_alone": search_alone,
    "retrieval": retrieval,
    "pararel": pararel,
    "insertion": insertion,
    "absent": absent,
    "edits": edits,
    "overlap": overlap,
    "counterfact": counterfact,
    "zsre": zsre,
    "usage": bank_usage,
    "generation": generation,
    "language_sets": language_sets,
}

# Left out of an evaluation of all tasks, for they take long; the flag that asks for a task like --tasks does, if any.
ON_REQUEST = {"cost": None, "absent": None, "overlap": "plain"}

__all__ = ["ON_REQUEST", "TASKS", "EvalConfig"]
