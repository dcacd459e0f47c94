"""The verb `export`: a model directory in, what another program loads out."""
