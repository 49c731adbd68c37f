"""Prints the ten slowest tests of a JUnit report: python3 .ci/slowest.py FILE"""

import sys
from xml.etree import ElementTree

cases = ElementTree.parse(sys.argv[1]).iter("testcase")
slowest = sorted(((float(case.get("time")), case.get("classname"), case.get("name")) for case in cases), reverse=True)[:10]
print("the slowest tests, in seconds:")
for seconds, binary, name in slowest:
    print(f"{seconds:8.1f}  {binary} {name}")
