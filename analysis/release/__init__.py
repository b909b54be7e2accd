"""Whether a model may be released: the facts about one defense, the gate that judges them, and the card that shows them."""
