"""``/v1`` as its users meet it: a real gateway, asked by the real ``openai`` package."""
