"""The data room: schema, rules, mergeable statistics, the lake's Delta tables, and Ray Data that carries them."""
