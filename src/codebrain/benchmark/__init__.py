"""Model x pattern x contrast x patient -> tidy rows -> tables and figures.

::

    rows = evaluate(model, store, split="test")       # scoring.py: one Row per number
    summarise(rows, metric="PSNR")                    # summary.py: pooled as the released code does
    comparison(rows).markdown()                       # tables.py: which numbers; layout.py: how they are printed
    interval(rows, metric="PSNR")                     # statistics.py: bootstrap and paired tests over patients
    scores_figure(rows)                               # figures/ (matplotlib)

A whole comparison, equal budgets included::

    suite, configs = load_suite("methods_small")      # suite.py: which methods meet, and how
    run_suite(suite, configs, store, out)             # runner.py: the plan (budget.py), one process per method
                                                      # (contest.py: train, score, one file per finished cell)
    publish(out, suite, results, store)               # publish.py: tables beside the paper's (paper.py), figures
"""

from codebrain.benchmark.references import REFERENCES, reference_model
from codebrain.benchmark.rows import Row, rows_from_csv, rows_to_csv
from codebrain.benchmark.scoring import evaluate
from codebrain.benchmark.summary import Score, summarise

__all__ = [
    "REFERENCES",
    "Row",
    "Score",
    "evaluate",
    "reference_model",
    "rows_from_csv",
    "rows_to_csv",
    "summarise",
]
