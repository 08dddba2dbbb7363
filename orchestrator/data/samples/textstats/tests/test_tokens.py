import unittest

from textstats.tokens import words


class WordsTest(unittest.TestCase):
    def test_words_are_in_lower_case_and_in_order(self):
        self.assertEqual(words("One, two. THREE!"), ["one", "two", "three"])

    def test_numbers_are_words(self):
        self.assertEqual(words("7 of 9"), ["7", "of", "9"])

    def test_a_contraction_is_one_word(self):
        self.assertEqual(words("Don't panic"), ["don't", "panic"])

    def test_quotation_marks_are_no_part_of_a_word(self):
        self.assertEqual(words("a 'quoted' word"), ["a", "quoted", "word"])


if __name__ == "__main__":
    unittest.main()
