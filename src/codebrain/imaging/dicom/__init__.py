"""DICOM in and out: find series, say which contrast each is, convert one, write a derived one.

::

    folder, zip -> Store -> Instances -> Series -> labels -> chosen by contrast -> Volume
                   store    header       series    labels    find                 convert

:mod:`codebrain.imaging.dicom.derived` is the way back: an imputed contrast as a series on the source's slices.

Two rules run through every room. Nothing that names a person (names, numbers, dates, descriptions, file and
folder names) leaves a :class:`Series` except through ``--keep-patient``; and every value of a header is a
stranger's: sizes are judged before they are used, and a value that cannot be read is a refusal.
"""
