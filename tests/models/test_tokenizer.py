"""The embedded tokenizer."""

from mth.tasks.alphabet_sort import embedded_pools


def test_embedded_tokenizer_keeps_the_words_it_was_trained_with(tokenizer):
    for names in embedded_pools():
        assert all(len(tokenizer(name)["input_ids"]) == 1 for name in names)
    text = "Sort by LAST name: AdaLovelace, JamesSmith\n<alphabetical_sorted>\n12 + 3 = 15 \\boxed{15} // new name!"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer.convert_ids_to_tokens(tokenizer(", JamesSmith")["input_ids"]) == [",Ġ", "James", "Smith"]
