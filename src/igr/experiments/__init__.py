"""The paper's experiments, and the machinery to run variations of them."""
