"""Look inside a model: attention, the residual stream, what each layer predicts, what each head does."""
