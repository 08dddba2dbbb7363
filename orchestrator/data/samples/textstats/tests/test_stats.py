import unittest

from textstats.stats import mean, median


class StatsTest(unittest.TestCase):
    def test_the_mean_of_nothing_is_zero(self):
        self.assertEqual(mean([]), 0)

    def test_the_median_of_an_odd_count_is_the_middle_one(self):
        self.assertEqual(median([5, 1, 3]), 3)

    def test_the_median_of_an_even_count_is_between_the_middle_two(self):
        self.assertEqual(median([4, 1, 3, 2]), 2.5)


if __name__ == "__main__":
    unittest.main()
