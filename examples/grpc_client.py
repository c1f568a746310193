"""Stream a completion over gRPC, then ask for the same tokens without speculation: `python examples/grpc_client.py [ADDRESS]`.

Needs a running service (`dspark serve`).
"""

import sys

from dspark.client import DEFAULT_ADDRESS, Client

PROMPT = "def read_lines(path):\n"


def main() -> None:
    """Print the stream, the speculation counts, and whether plain decoding agrees."""
    with Client(sys.argv[1] if len(sys.argv) > 1 else DEFAULT_ADDRESS) as client:
        token_ids: list[int] = []
        for chunk in client.stream(PROMPT, max_tokens=64, temperature=0.8, seed=7):
            token_ids += chunk.token_ids
            print(chunk.text, end="", flush=True)
            usage = chunk.usage
        print(f"\n\n{usage.completion_tokens} tokens in {usage.rounds} rounds, ", end="")
        print(f"{usage.accepted_tokens} of {usage.drafted_tokens} drafted ones accepted")
        plain = client.generate(PROMPT, max_tokens=64, temperature=0.8, seed=7, speculation=False)
        print("the same without speculation:", list(plain.token_ids) == token_ids)


if __name__ == "__main__":
    main()
