"""Prints what an install of Paceline with the extras named on the command line requires, one requirement a line.

So that the image's layer with the dependencies stays as it is when only the source has changed.
"""

import sys
import tomllib

with open("pyproject.toml", "rb") as file:
    project = tomllib.load(file)["project"]
for requirement in project["dependencies"]:
    print(requirement)
for extra in sys.argv[1:]:
    for requirement in project["optional-dependencies"][extra]:
        print(requirement)
