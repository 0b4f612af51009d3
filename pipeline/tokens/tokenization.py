"""Documents' texts -> token ids."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cloze.pipeline.core.schema import text_key
from cloze.pipeline.text.sentences import Splitter, document_sentences, split_sentences
from cloze.pipeline.text.token_shards import TOKENIZED_DOCUMENT, TokenizedDocuments
from cloze.pipeline.text.tokenizer import BulkTokenizer

COLUMNS = ["doc_id", "source", "text", "split"]
_BATCH_CHARACTERS = 1 << 20


def tokenize(
    texts: Sequence[str], tokenizer: BulkTokenizer, split: Splitter = split_sentences
) -> tuple[np.ndarray, npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Documents' texts -> their ids, the number of ids of each sentence, and the number of sentences of each document.

    Sentences without tokens are left out.
    """
    ids, lengths, counts = [tokenizer.encode([])[0]], [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for batch in _batches(texts):
        documents = [document_sentences(text, split) for text in batch]
        batch_ids, offsets = tokenizer.encode([sentence for document in documents for sentence in document])
        owners = np.repeat(np.arange(len(documents)), [len(document) for document in documents])
        batch_lengths = np.diff(offsets)
        counts.append(np.bincount(owners[batch_lengths > 0], minlength=len(documents)))
        ids.append(batch_ids)
        lengths.append(batch_lengths[batch_lengths > 0])
    return np.concatenate(ids), np.concatenate(lengths).astype(np.uint32), np.concatenate(counts).astype(np.uint32)


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    start = size = 0
    for index, text in enumerate(texts):
        size += len(text)
        if size >= _BATCH_CHARACTERS:
            yield texts[start : index + 1]
            start, size = index + 1, 0
    if start < len(texts):
        yield texts[start:]


def tokenize_documents(table: pa.Table, tokenizer: BulkTokenizer, split: Splitter) -> TokenizedDocuments:
    """Rows of documents -> their token ids. Documents without tokens have no sentence."""
    ids, sentences, counts = tokenize(table["text"].to_pylist(), tokenizer, split)
    documents = np.zeros(len(table), TOKENIZED_DOCUMENT)
    documents["key"] = [text_key(doc_id) for doc_id in table["doc_id"].to_pylist()]
    sources = table["source"].to_pylist()
    keys = {source: text_key(source) for source in set(sources)}
    documents["source"] = [keys[source] for source in sources]
    documents["sentences"] = counts
    return TokenizedDocuments(ids, sentences, documents)


def sort_documents(documents: TokenizedDocuments) -> TokenizedDocuments:
    """Sort documents by key, those of equal keys by their ids. Documents without tokens are left out."""
    keys, ids = documents.documents["key"].tolist(), documents.ids_by_document()
    rows = np.flatnonzero(documents.documents["sentences"]).tolist()
    return documents.take(np.array(sorted(rows, key=lambda row: (keys[row], ids[row].tobytes())), np.int64))
