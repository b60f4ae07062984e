"""What people write today: fine-tune with sentence-transformers, put FAISS behind FastAPI, choose a threshold.

    python handwritten.py train.csv val.csv unknown.csv ENCODER PORT

An honest best effort of such a script, for comparison alone: the usual loss, whatever encoder is given, cosines of
normalised vectors, and, from held-out queries instead of guessed, Platt's curve from a cosine to the probability that
the label is right, and a threshold. It answers GET /search?text=... with the nearest label, its probability, and
whether its cosine reaches the threshold.
"""

import csv
import sys
from pathlib import Path

import faiss
import numpy as np
import uvicorn
from datasets import Dataset
from fastapi import FastAPI
from sentence_transformers import (
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.losses import MultipleNegativesRankingLoss
from sklearn.linear_model import LogisticRegression


def read(path):
    with Path(path).open(encoding="utf-8", newline="") as file:
        return [(row["text"], row["intent"]) for row in csv.DictReader(file)]


def pairs(rows, seed=0):
    by_label, random = {}, np.random.default_rng(seed)
    for text, label in rows:
        by_label.setdefault(label, []).append(text)
    found = []
    for texts in by_label.values():
        found += list(zip(texts, random.permutation(texts).tolist(), strict=True))
    return Dataset.from_dict({"anchor": [a for a, b in found if a != b], "positive": [b for a, b in found if a != b]})


train, val, unknown = (read(path) for path in sys.argv[1:4])
model = SentenceTransformer(sys.argv[4], device="cpu")
arguments = SentenceTransformerTrainingArguments(
    output_dir="handwritten-model",
    num_train_epochs=5,
    per_device_train_batch_size=64,
    learning_rate=1e-2,
    warmup_steps=0.1,
    batch_sampler="no_duplicates",
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
    seed=0,
)
SentenceTransformerTrainer(
    model=model, args=arguments, train_dataset=pairs(train), loss=MultipleNegativesRankingLoss(model)
).train()


def encode(texts):
    return model.encode(texts, normalize_embeddings=True, show_progress_bar=False)


labels = [label for _, label in train]
index = faiss.IndexFlatIP(model.get_embedding_dimension())
index.add(encode([text for text, _ in train]))
scores, positions = index.search(encode([text for text, _ in val + unknown]), 1)
right = np.array([labels[at] == label for at, (_, label) in zip(positions[:, 0], val + unknown, strict=True)])
known = np.arange(len(right)) < len(val)
cuts = np.unique(scores)
weight = np.where(known, 0.8 / known.sum(), 0.2 / (~known).sum())  # one query in five is expected to be unknown
gains = [weight[np.where(known, (scores[:, 0] >= cut) & right, scores[:, 0] < cut)].sum() for cut in cuts]
threshold = float(cuts[int(np.argmax(gains))])
platt = LogisticRegression(C=1e6).fit(scores, right, sample_weight=weight)

app = FastAPI()


@app.get("/search")
def search(text: str):
    (score,), (at,) = (found[0] for found in index.search(encode([text]), 1))
    sure = float(platt.predict_proba([[score]])[0, 1])
    return {"label": labels[at], "score": sure, "match": bool(score >= threshold)}


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[5]), log_level="warning")
