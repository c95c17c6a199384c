"""Model x pattern x contrast x patient -> tidy rows -> tables and figures.

::

    rows = evaluate(model, store, split="test")       # scoring.py: one Row per number
    summarise(rows, metric="PSNR")                    # summary.py: pooled as the released code does
    report(rows).markdown()                           # tables.py
    scores_figure(rows)                               # figures.py (matplotlib)
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
