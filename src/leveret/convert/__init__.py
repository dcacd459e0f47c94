"""The verb `convert`: whatever form a model comes in, a clean model directory out."""
