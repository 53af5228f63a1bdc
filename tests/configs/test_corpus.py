"""configs/corpus: what is drawn, what is left out and why, what is counted, and that its documents say so."""

import json
import lzma
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

CORPUS = Path(__file__).parents[2] / "configs" / "corpus"


@pytest.fixture(scope="module")
def corpus():
    """The modules, which import each other by their plain names."""
    names = ("words", "templates", "openings", "filters", "write_corpus", "select_corpus")
    before = {name: sys.modules.pop(name, None) for name in names}
    sys.path.insert(0, str(CORPUS))
    try:
        import select_corpus
        import write_corpus

        yield type("Corpus", (), {"write": write_corpus, "select": select_corpus, **_parts(write_corpus)})
    finally:
        sys.path.remove(str(CORPUS))
        for name in names:
            sys.modules.pop(name, None)
        sys.modules.update({name: module for name, module in before.items() if module is not None})


def _parts(write_corpus):
    return {name: getattr(write_corpus, name) for name in ("openings", "filters", "templates")}


class TestOpenings:
    def test_are_the_same_everywhere(self, corpus):
        drawn = [(0, "day"), (1, "memory"), (12345, "letter"), (8192, "recipe")]
        assert [corpus.openings.opening(1, k, form) for k, form in drawn] == [
            (15, "For lunch, Ivy had ginger tea and"),
            (34, "The best birthday present I ever got was a used shovel."),
            (125, "Dear Irene, it has been sunny here in Westport."),
            (114, "In our kitchen, jam is always"),
        ]

    def test_every_template_of_every_form_gives_a_sentence(self, corpus):
        openings, seen = corpus.openings, set()
        for form in corpus.templates.FORMS:
            for k in range(200):
                number, text = openings.opening(5, k, form)
                seen.add(number)
                assert openings.TEMPLATES[number][0] == form
                assert not re.search(r"[{}]|  | [.,]", text) and (text[0].isupper() or text[0].isdigit()), text
                assert not re.search(r"\b[Aa] [aeio]", text) and not re.search(r"\b[Aa]n [bcdfgjklmnpqrstvwyz]", text), text
        assert len(seen) > 0.95 * len(openings.TEMPLATES) and len(openings.TEMPLATES) == 479

    def test_a_persons_pronouns_are_the_names(self, corpus):
        openings, women = corpus.openings, set(corpus.openings.LISTS["woman"])
        pronouns = {"he": {"he", "his", "him"}, "she": {"she", "her"}}
        both = set()
        for number, (form, template) in enumerate(openings.TEMPLATES):
            if len(re.findall(r"\{!?name\}", template)) != 1 or not re.search(r"\{!?(he|his|him)\}", template):
                continue
            for k in range(400):
                drawn, text = openings.opening(3, k, form)
                if drawn == number:
                    woman = bool(women & set(re.findall(r"[A-Z]\w+", text)))
                    words = set(re.findall(r"[a-z]+", text.lower()))
                    assert words & pronouns["she" if woman else "he"] and not words & pronouns["he" if woman else "she"], text
                    both.add(woman)
        assert both == {True, False}

    @pytest.mark.parametrize(
        "word, expected",
        [("apple", "an"), ("pear", "a"), ("hour", "an"), ("unicycle", "a"), ("umbrella", "an"), ("euro", "a"), ("X-ray", "an")],
    )
    def test_articles(self, corpus, word, expected):
        assert corpus.openings.article(word) == expected

    @pytest.mark.parametrize(
        "word, expected",
        [("dog", "dogs"), ("fox", "foxes"), ("cherry", "cherries"), ("donkey", "donkeys"), ("bookshelf", "bookshelves")],
    )
    def test_plurals(self, corpus, word, expected):
        assert corpus.openings.plural(word) == expected

    def test_combinations_of_a_template(self, corpus):
        openings = corpus.openings
        number = next(i for i, (_, text) in enumerate(openings.TEMPLATES) if text == "After work, {name} likes to")
        assert openings.combinations(number) == 168 == len(openings.LISTS["woman"]) + len(openings.LISTS["man"])


GOOD = (
    "My sister and I planted a garden behind our house. At first, it was a bit of a challenge, but I was determined to make "
    "it work. We dug up the grass, carried away the stones and bought seeds at the market. By June the beans were tall."
)


COLOURS, THINGS = ("red", "blue", "old", "new"), ("cup", "pot", "jar", "pan", "lid", "mug", "can", "bag")


class TestFilters:
    def test_a_text_ends_at_its_last_sentence(self, corpus):
        assert corpus.filters.text_of(GOOD + " After that, we") == (GOOD, "")
        assert corpus.filters.text_of(GOOD + "\n\n- beans\n- peas.") == (GOOD, "")
        assert corpus.filters.text_of(GOOD + " It cost 5 € then.") == (GOOD, "")
        assert corpus.filters.text_of(GOOD + " We asked Mr.") == (GOOD, "")

    def test_paragraphs_are_joined_and_marks_made_plain(self, corpus):
        first, rest = GOOD.split(" At first", 1)
        assert corpus.filters.text_of(f"{first}\n\nAt first{rest}") == (GOOD, "")
        assert corpus.filters.text_of(GOOD.replace("our house", "our aunt\u2019s house"))[0] == GOOD.replace(
            "our house", "our aunt's house"
        )

    @pytest.mark.parametrize(
        "text, reason",
        [
            ("we went on and on", "no sentence"),
            ("It rained. We stayed in. Nobody minded.", "short"),
            (f"It rained. We stayed in{', and we stayed in bed until noon' * 9}.", "few sentences"),
            (" ".join(f"The {a} {b} fell from a shelf." for a in COLOURS for b in THINGS), "long"),
            (GOOD + ' He said, "Yes.', "marks"),
            (GOOD + " As an AI, I like beans.", "about itself"),
            (GOOD + " It was a testament to us.", "ornate"),
            (GOOD + " We picked 123456 beans.", "figures"),
            (GOOD + " The NASA came by.", "figures"),
            (GOOD + " We bought seeds at the market, we bought seeds at the market.", "loop"),
            (GOOD + " It was was late.", "loop"),
        ],
    )
    def test_reasons(self, corpus, text, reason):
        assert corpus.filters.text_of(text) == (None, reason)

    def test_loops(self, corpus):
        def loops(text):
            return corpus.filters.loops(text, [m.end() for m in re.finditer(r"\.", text)])

        assert not loops("He ate. She slept. We left early in the day.")
        assert loops("He ate bread. He ate soup. He ate fish and some other things besides.")
        assert loops("the cat the cat the cat the cat sat.")


class TestRequests:
    def test_forms_and_requests_take_turns(self, corpus):
        forms = list(corpus.templates.FORMS)
        assert [corpus.write.request(1, group)[0] for group in range(22)] == forms
        assert [corpus.write.request(1, 22 * turn)[2] for turn in range(5)] == [1, 2, 3, 0, 1]
        form, text, number = corpus.write.request(1, 0)
        assert (form, number) == ("day", 1)
        assert text.startswith("<|im_start|>user\nWrite the first page of a book about ")
        assert text.endswith("<|im_end|>\n<|im_start|>assistant\n") and "{" not in text


class TestSelection:
    """Three texts of tokens 1 2 3 4 5, 1 2 3 9 and 7 1 2 3."""

    ids = torch.tensor([1, 2, 3, 4, 5, 1, 2, 3, 9, 7, 1, 2, 3])
    text = torch.tensor([0] * 5 + [1] * 4 + [2] * 4)

    def test_grams_stay_within_a_text(self, corpus):
        value, where = corpus.select.grams(self.ids, self.text, 3)
        assert where.tolist() == [0, 0, 0, 1, 1, 2, 2]
        # 1 2 3 stands in all three, and every other run in one.
        assert value[0] == value[3] == value[6] and len(value.unique()) == 5

    def test_a_phrase_stays_in_the_first_texts_only(self, corpus):
        found = corpus.select.grams(self.ids, self.text, 3)
        assert corpus.select.beyond(*found, 1).tolist() == [1, 2]
        assert corpus.select.beyond(*found, 2).tolist() == [2] and corpus.select.beyond(*found, 3).tolist() == []

    def test_packed_texts_come_back_a_line_each(self, corpus):
        assert lzma.decompress(corpus.select.pack(["one.", "two."])) == b"one.\ntwo.\n"

    def test_statistics(self, corpus):
        columns = {
            "lengths": np.array([5, 4, 4]),
            "nats": np.array([0.9, 1.15, 1.55]),
            "template": np.array([0, 0, 20]),
            "request": np.array([1, 1, 0]),
            "opening": np.array(["a", "a", "b"], dtype=object),
        }
        texts = ["He ate. She slept.", "He ate two. Good!", "We left? Yes."]
        found = corpus.select.statistics(texts, columns, self.ids, self.text, 1)
        assert found["texts"] == 3 and found["tokens"] == 13 and found["characters"] == sum(map(len, texts))
        assert found["forms"] == {"day": 2, "memory": 1} and found["requests"] == {"0": 1, "1": 2}
        assert found["openings"] == 2 and found["openings_of_one_text"] == 1
        assert found["tokens_of_at_most_nats"] == {
            "1.0": 5, "1.1": 5, "1.2": 9, "1.3": 9, "1.4": 9, "1.5": 9, "1.6": 13,
        }  # fmt: skip
        assert found["self_perplexity"]["0.5"] == pytest.approx(np.exp(1.15), abs=1e-3)
        assert found["different_n_grams"] == {"1": 7, "2": 6, "3": 5, "4": 4}
        assert found["distinct_n_of_two_million_tokens"]["2"] == pytest.approx(6 / 10)
        assert found["texts_that_share_a_run_with_another"] == {"8": 0, "13": 0, "20": 0, "32": 0}
        # Of 13 tokens 1, 2 and 3 are nine.
        assert found["tokens_that_make_up"]["0.5"] == 3 and found["sentences_a_text"] == 2.0


class TestDocuments:
    def test_the_kept_statistics_are_of_these_rules(self, corpus):
        found, readme = json.loads((CORPUS / "statistics.json").read_text()), (CORPUS / "README.md").read_text()
        select = corpus.select
        assert list(found["tokens_of_at_most_nats"])[-1] == str(select.MOST)
        assert found["tokens_of_at_most_nats"][str(select.MOST)] == pytest.approx(found["tokens"], rel=1e-3)
        assert found["templates"] <= len(corpus.openings.TEMPLATES) and set(found["forms"]) == set(corpus.templates.FORMS)
        assert found["a_sample_is_the_same_with"] == {"seed": 1, "group": corpus.write.GROUP, "length": corpus.write.LENGTH}
        for said in (
            f"{select.LEAST:.2f} to {select.MOST:.2f} nats a drawn token; no token beyond {select.RAREST:.0f} nats",
            f"At most {select.SAME} texts an opening; a phrase of eight tokens in at most {select.PHRASE} texts",
            f"{corpus.filters.SHORTEST} to {corpus.filters.LONGEST} characters, three sentences or more",
            f"**{found['texts']:,} texts, {found['tokens'] / 1e6:.1f}M tokens**",
            f"{found['openings']:,}, each in at most {select.SAME} texts; {found['openings_of_one_text']:,} of them in one",
        ):
            assert said in readme, said
        assert found["left_out"]["kept by the filters"] - sum(list(found["left_out"].values())[1:]) == found["texts"]
