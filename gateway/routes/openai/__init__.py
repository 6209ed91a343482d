"""``/v1``: the routes that OpenAI's clients call, in OpenAI's shapes. One blueprint per noun."""

from gateway.routes.openai.chat import blueprint as chat
from gateway.routes.openai.completions import blueprint as completions
from gateway.routes.openai.models import blueprint as models
from gateway.routes.openai.moderations import blueprint as moderations
from gateway.routes.openai.requests import blueprint as requests
from gateway.routes.openai.template import blueprint as template
from gateway.routes.openai.transcriptions import blueprint as transcriptions

BLUEPRINTS = (chat, completions, models, moderations, requests, template, transcriptions)
