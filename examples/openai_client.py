"""OpenAI's Python client: the served model, a completion and a chat, both as they come."""

import os

from openai import OpenAI

URL = os.environ.get("EXPERTMESH_URL", "http://127.0.0.1:8000")
client = OpenAI(base_url=f"{URL}/v1", api_key=os.environ.get("EXPERTMESH_API_KEY", "-"))

[model] = client.models.list().data
print(model.id)

completion = client.completions.create(
    model=model.id, prompt="The SELECT statement", max_tokens=32, stream=True
)
for part in completion:
    print(part.choices[0].text, end="", flush=True)
print()

chat = client.chat.completions.create(
    model=model.id,
    messages=[
        {"role": "system", "content": "You explain databases."},
        {"role": "user", "content": "What is an index?"},
    ],
    max_tokens=32,
    temperature=0,
    seed=1,
    stream=True,
    stream_options={"include_usage": True},
)
for chunk in chat:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    elif chunk.usage:
        print(f"\n({chunk.usage.prompt_tokens} + {chunk.usage.completion_tokens} tokens)")
