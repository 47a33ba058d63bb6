"""How it is computed: the training passes and their operators, in torch, C and Triton."""
