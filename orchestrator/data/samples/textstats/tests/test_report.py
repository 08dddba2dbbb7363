import unittest

from textstats import most_common, summary


class ReportTest(unittest.TestCase):
    def test_a_summary_counts_and_measures(self):
        self.assertEqual(summary("one three five"), {"words": 3, "mean": 4.0, "median": 4})

    def test_a_contraction_counts_once(self):
        self.assertEqual(summary("isn't it")["words"], 2)

    def test_equally_common_words_come_in_alphabetical_order(self):
        self.assertEqual(most_common("to be or not to be", 2), [("be", 2), ("to", 2)])


if __name__ == "__main__":
    unittest.main()
