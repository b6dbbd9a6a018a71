"""Reads the files of offline runs of Weights & Biases."""

import json
import struct
from collections import defaultdict


def wandb_file(run):
    """The file of the only offline run in a run folder."""
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    return file


def wandb_records(file):
    """The records of an offline run of Weights & Biases: protocol buffers in LevelDB's log format, after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, data = file.read_bytes(), 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # no header fits into the rest of a block
            place += 32768 - place % 32768
        _, length, kind = struct.unpack_from("<IHB", content, place)
        data += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # the whole record, or its last part
            record = Record()
            record.ParseFromString(data)
            data = b""
            yield record


def wandb_history(file):
    """What was logged under each name, in order: numbers, or the description of pictures and tables."""
    logged = defaultdict(list)
    for record in wandb_records(file):
        row = {}
        for item in record.history.item:
            *outer, last = item.nested_key or [item.key]
            part = row
            for key in outer:
                part = part.setdefault(key, {})
            part[last] = json.loads(item.value_json)
        for name, value in row.items():
            logged[name].append(value)
    return logged
