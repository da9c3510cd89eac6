"""Prints what an installed package needs, one requirement a line. Usage: requires.py PACKAGE

Local versions ("2.13.0+cpu") become the public ones, which the ordinary index has. Packages of
PyTorch's family that a language model does without are left out: for some versions of PyTorch the
ordinary index has none that fit.
"""

import re
import sys
from importlib.metadata import requires

from pip._vendor.packaging.requirements import Requirement

LEFT_OUT = {"torchaudio", "torchvision", "torchcodec"}

for line in requires(sys.argv[1]) or []:
    requirement = Requirement(line)
    applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if applies and requirement.name.lower() not in LEFT_OUT:
        requirement.marker = None
        print(re.sub(r"(==[0-9.]+)\+\w+", r"\1", str(requirement)))
