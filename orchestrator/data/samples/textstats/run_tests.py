"""Runs all tests, or those named, and prints one line for each that doesn't pass."""

import sys
import unittest


class Lines(unittest.TestResult):
    def addFailure(self, test, err):
        super().addFailure(test, err)
        print(f"FAIL  {test.id()}: {first_line(err[1])}")

    def addError(self, test, err):
        super().addError(test, err)
        print(f"ERROR {test.id()}: {type(err[1]).__name__}: {first_line(err[1])}")


def first_line(error):
    return (str(error).splitlines() or [""])[0]


def main(names):
    result = Lines()
    loader = unittest.defaultTestLoader
    tests = loader.loadTestsFromNames(names) if names else loader.discover("tests", top_level_dir=".")
    tests.run(result)
    broken = len(result.failures) + len(result.errors)
    print(f"{result.testsRun} {'test' if result.testsRun == 1 else 'tests'}, {broken} failed")
    return 1 if broken or not result.testsRun else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
