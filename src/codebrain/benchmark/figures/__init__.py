"""Figures: two of an evaluation, and those of a paper as :class:`Drawing` (PNG and PDF).

::

    evaluation.py   scores_figure, examples_figure    what `evaluate` writes
    scenarios.py    scenarios_figure                  one model: given, imputed and error, scenario by scenario
    methods.py      methods_figure                    methods side by side on one slice
    codes.py        codes_figure                      predicted beside true code
    bars.py         bars_figure                       mean scores of methods or variants
    chosen.py                                         which patients, slices and scenarios are shown
    drawing.py                                        sheets, type, colours, words burned in
"""

from codebrain.benchmark.figures.bars import bars_figure
from codebrain.benchmark.figures.chosen import box_around
from codebrain.benchmark.figures.codes import Codes, codes_figure
from codebrain.benchmark.figures.drawing import COLOURS, Drawing
from codebrain.benchmark.figures.evaluation import Example, examples_figure, examples_of, scores_figure
from codebrain.benchmark.figures.methods import methods_figure
from codebrain.benchmark.figures.scenarios import scenarios_figure

__all__ = [
    "COLOURS",
    "Codes",
    "Drawing",
    "Example",
    "bars_figure",
    "box_around",
    "codes_figure",
    "examples_figure",
    "examples_of",
    "methods_figure",
    "scenarios_figure",
    "scores_figure",
]
