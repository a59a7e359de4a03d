"""The figures of a comparison, computed again from its case files alone, with none of emend's code and nothing but Python 3.

    python3 tests/recompute.py RESULTS > figures.json

prints every mean with the cases it is over, and Wilson's interval where each case is yes or no. Each protocol is written here from its
definition, in another way than in src/evaluate: this is what the program's numbers are held against.
"""

import json
import math
import re
import struct
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from statistics import fmean, median

LABELS = {"true": True, "false": False}


def last_run(method):
    runs = [path for path in method.iterdir() if re.fullmatch(r"run_\d+", path.name) and path.is_dir()]
    return max(runs, key=lambda path: int(path.name[4:]), default=None)


def read(results):
    """The cases of each method's last run, in the order of names and ids."""
    methods = {}
    for folder in sorted(path for path in Path(results).iterdir() if path.is_dir()):
        run = last_run(folder)
        files = run.glob("case_*.json") if run else []
        cases = [json.loads(file.read_text("utf-8"))["emend"]["case"] for file in files]
        if cases:
            methods[folder.name] = sorted(cases, key=lambda case: case["id"].encode())
    return methods


def logs(scored):
    """As the program holds them, in 32 bits."""
    return [math.nan if log is None else struct.unpack("f", struct.pack("f", log))[0] for log in scored["log_probabilities"]]


def nll(scored):
    return -fmean(logs(scored))


def is_exact(scored):
    return scored["argmax"] == scored["target"]


def share(answers):
    answers = list(answers)
    return fmean(map(float, answers)) if answers else None


def of_kind(case, kind):
    return [row for row in case["rows"] if row["kind"] == kind]


def classes(case, kind):
    return sorted({row["class"] for row in of_kind(case, kind) if row["class"] is not None})


def entropy(words, n):
    counts = Counter(tuple(words[at : at + n]) for at in range(len(words) - n + 1))
    total = sum(counts.values())
    return -sum(count / total * math.log2(count / total) for count in counts.values())


def fluency(texts):
    def of(text):
        # Word for word, prompt and continuation each by itself.
        words = [word for part in text for word in re.findall(r"[^\W_]+|[^\w\s]|_", part)]
        return 0.5 * (2 / 3 * entropy(words, 2) + 4 / 3 * entropy(words, 3))

    return fmean(map(of, texts)) if texts else None


def whole_texts(case):
    return [(text["prompt"], text["after"]) for text in case.get("texts", []) if "to_own_end" in text]


def own_texts(case):
    return [(text["prompt"], text.get("to_own_end", text["after"])) for text in case.get("texts", [])]


def counterfact(case):
    values = {}
    for name, kind in (("efficacy", "rewrite"), ("paraphrase", "rephrase"), ("neighborhood", "locality")):
        rows = [row for row in of_kind(case, kind) if row["rival"] and row["rival"]["target"].strip() != row["target"].strip()]
        pairs = [(nll(row["after"]), nll(row["rival"]["after"])) for row in rows]
        if not pairs:
            continue
        probability = [[0.0 if math.isnan(loss) else math.exp(-loss) for loss in pair] for pair in pairs]
        values[name] = share(right < wrong for right, wrong in pairs)
        values[name + "_magnitude"] = fmean(right - wrong for right, wrong in probability)
        values[name + "_exact"] = share(is_exact(row["after"]) for row in rows)
    values["fluency"] = fluency(whole_texts(case))
    if case.get("essence"):
        before, after = case["essence"]
        values["essence"], values["essence_rise"] = after, after - before
    return values


def alike(one, other):
    places = max(len(one), len(other))
    return sum(a == b for a, b in zip(one, other)) / places if places else None


def mean_of(values):
    values = [value for value in values if value is not None]
    return fmean(values) if values else None


def right(row):
    return alike(row["after"]["argmax"], row["after"]["target"])


def easyedit(case):
    values = {"rewrite_acc": mean_of(map(right, of_kind(case, "rewrite")))}
    values["rephrase_acc"] = mean_of(map(right, of_kind(case, "rephrase")))
    for name in classes(case, "locality"):
        rows = [row for row in of_kind(case, "locality") if row["class"] == name]
        values["locality/" + name] = mean_of(alike(row["before"]["argmax"], row["after"]["argmax"]) for row in rows)
    dropped = uncounted(row for row in case["rows"] if not is_exact(row["before"]))
    for name in classes(case, "portability"):
        rows = [row for row in of_kind(case, "portability") if row["class"] == name and test(row) not in dropped]
        values["portability/" + name] = mean_of(map(right, rows))
    values["fluency"] = fluency(whole_texts(case))
    return values


def mend(case):
    values = {"edit_success": share(is_exact(row["after"]) for row in of_kind(case, "rewrite"))}
    values["generalization"] = share(is_exact(row["after"]) for row in of_kind(case, "rephrase"))
    outside = of_kind(case, "locality")
    # CounterFact's attribute prompts ask for the new answer: a class beside the headline.
    sets = {"": [row for row in outside if row["class"] != "attribute"]}
    for name in classes(case, "locality"):
        sets["/" + name] = [row for row in outside if row["class"] == name]
    for name, rows in sets.items():
        values["locality" + name] = share(row["before"]["argmax"] == row["after"]["argmax"] for row in rows)
        known = [row for row in rows if row["given"]]
        if known:
            lost = sum(is_exact(row["before"]) for row in known) - sum(is_exact(row["after"]) for row in known)
            values["drawdown" + name] = lost / len(known)
    if case.get("perplexity"):
        before, after = case["perplexity"]
        values["perplexity"], values["perplexity_drawdown"] = after, after - before
        values["perplexity_ratio"] = values["perplexity_ratio/worst"] = after / before
    return values


def completion(case):
    if not case.get("completion"):
        return {}
    values = {"tokens": mean_of(map(right, of_kind(case, "rewrite")))}
    values["cut_tokens"] = mean_of(map(right, of_kind(case, "rephrase")))
    if case.get("perplexity"):
        values["perplexity_before"], values["perplexity_after"] = case["perplexity"]
    return values


def bare(text):
    text = " ".join(text.split()).lower()
    return re.sub(r"(?:(?![%)+#])[\W_])+$", "", text) or text


def names(row):
    return [row["target"], *row.get("aliases", [])]


def says(text, row):
    """Whether a name of the target stands among the words of a text."""
    plain = " ".join(text.split()).lower()
    return any(stands_in(bare(name), plain) for name in names(row) if bare(name))


def joins(a, b):
    """Whether two letters belong to one word; those of scripts without spaces never need to."""
    spaceless = ("CJK ", "HIRAGANA", "KATAKANA", "THAI ", "LAO ", "KHMER ", "MYANMAR ", "TIBETAN ")
    return all(letter.isalnum() and not unicodedata.name(letter, "").startswith(spaceless) for letter in (a, b))


def stands_in(name, plain):
    starts = (at for at in range(len(plain)) if plain.startswith(name, at))
    for at in starts:
        end = at + len(name)
        before = at > 0 and joins(plain[at - 1], name[0])
        behind = end < len(plain) and joins(name[-1], plain[end])
        if not before and not behind:
            return True
    return False


def mquake(case):
    answers = [(answer["after"], case["rows"][answer["row"]]) for answer in case.get("answers", [])]
    hops = {name: [says(after, row) for after, row in answers if row["class"] == name and row.get("test")] for name in ("single hop", "multi-hop")}
    if not hops["multi-hop"]:
        return {}
    values = {"edit_wise": share(says(after, row) for after, row in answers if row["kind"] == "rewrite")}
    values["multi_hop"] = float(any(hops["multi-hop"]))
    if hops["single hop"]:
        values["instance_wise"] = float(all(hops["single hop"]))
    return values


RIPPLE = ("relation_specificity", "forgetfulness", "logical_generalization", "subject_aliasing", "compositionality_i", "compositionality_ii")


def test(row):
    return (row["class"], row["test"]["number"]) if row.get("test") else None


def uncounted(missed):
    """Tests that do not count: one of their conditions was missed."""
    return {test(row) for row in missed if row["kind"] == "condition" and row.get("test")}


def ripple(case):
    tests = {}
    for answer in case.get("answers", []):
        row = case["rows"][answer["row"]]
        if row.get("test") and row["class"].lower() in RIPPLE:
            test = tests.setdefault((row["class"].lower(), row["test"]["number"]), {"any": row["test"]["any"], "wanted": [], "right": []})
            wanted = row["kind"] == "condition"
            test["wanted" if wanted else "right"].append(says(answer["before" if wanted else "after"], row))
    passed = {}
    for (name, _), test in tests.items():
        if all(test["wanted"]) and test["right"]:
            passed.setdefault(name, []).append((any if test["any"] else all)(test["right"]))
    return {name: share(tests) for name, tests in passed.items()}


def generate(case):
    values = {}
    answers = [(answer, case["rows"][answer["row"]]) for answer in case.get("answers", [])]
    dropped = uncounted(row for answer, row in answers if not says(answer["before"], row))
    answers = [(answer, row) for answer, row in answers if test(row) not in dropped]
    for kind in ("rewrite", "rephrase", "portability"):
        said = [(answer["after"], row) for answer, row in answers if row["kind"] == kind]
        values[kind + "_exact"] = share(bare(after) in [bare(name) for name in names(row)] for after, row in said)
        values[kind + "_contained"] = share(says(after, row) for after, row in said)
        values[kind + "_forced"] = share(is_exact(row["after"]) for _, row in said)
    kept = [answer for answer, row in answers if row["kind"] == "locality" and row["class"] != "attribute"]
    values["locality_same"] = share(answer["before"].strip() == answer["after"].strip() for answer in kept)
    values["fluency"] = fluency(own_texts(case))
    return values


def label(row):
    """What is right of a claim: True or False, where the other one is its rival."""
    right = LABELS.get(row["target"].strip().lower())
    wrong = LABELS.get(row["rival"]["target"].strip().lower()) if row["rival"] else None
    return right if right is not None and wrong is not None and right != wrong else None


def sentiment(case):
    pairs = [row for row in case["rows"] if row["described"] and row["kind"] != "locality" and row["rival"] and label(row) is None]
    if not pairs:
        return {}
    right_before = fmean(log for row in pairs for log in logs(row["before"]))
    right = fmean(log for row in pairs for log in logs(row["after"]))
    wrong = fmean(log for row in pairs for log in logs(row["rival"]["after"]))
    if math.isnan(right) or math.isnan(wrong):
        return {"sentiment": 0.0, "topic": 0.0, "success": 0.0}
    found, topic = 1 / (1 + math.exp(wrong - right)), math.exp(min(0.0, right - right_before))
    return {"sentiment": found, "topic": topic, "success": found * topic}


def efficiency(case):
    values = {"seconds/" + phase: seconds for phase, seconds in case["seconds"].items()}
    size = case["size"]
    values.update(rank=size["rank"], norm=size["norm"], relative_norm=size["relative"], entries=size["entries"])
    if "memory_before_bytes" in case:
        values["peak_memory"] = max(0, case["peak_memory_bytes"] - case["memory_before_bytes"])
    return values


PROTOCOLS = (counterfact, easyedit, mend, generate, completion, sentiment, mquake, ripple, efficiency)


def balanced(cases, name, inside):
    """Over all cases together: the mean over both labels of the share answered rightly."""
    claims, asked = {True: [], False: []}, set()
    for number, case in enumerate(cases):
        for row in case["rows"]:
            if label(row) is not None and (row["kind"] != "locality") == inside:
                claims[label(row)].append(nll(row["after"]) < nll(row["rival"]["after"]))
                asked.add(number)
    shares = [share(answers) for answers in claims.values() if answers]
    return [{"protocol": "balanced", "name": name, "mean": fmean(shares), "cases": len(asked)}] if shares else []


def wilson(mean, cases, z=1.96):
    """The two shares p that a test of p would just not refuse: (mean − p)² = z² p (1 − p) / n."""
    a, b, c = 1 + z * z / cases, -(2 * mean + z * z / cases), mean * mean
    root = math.sqrt(b * b - 4 * a * c)
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def is_share(protocol, name):
    words = ("fluency", "essence", "magnitude", "drawdown", "perplexity")
    return protocol != "efficiency" and not any(word in name for word in words)


def figures(cases):
    sound = [case for case in cases if case.get("error") is None]
    found = []
    columns = {}
    for case in sound:
        for protocol in PROTOCOLS:
            for name, value in protocol(case).items():
                if value is not None and not math.isnan(value):
                    columns.setdefault((protocol.__name__, name), []).append(value)
    for (protocol, name), values in columns.items():
        over = {"peak_memory": max, "perplexity_ratio/worst": max, "perplexity_ratio": median}.get(name, fmean)
        mean = over(values)
        figure = {"protocol": protocol, "name": name, "mean": mean, "cases": len(values)}
        if is_share(protocol, name) and all(value in (0, 1) for value in values):
            figure["low"], figure["high"] = wilson(mean, len(values))
        found.append(figure)
    parts = [columns.get(("counterfact", name)) for name in ("efficacy", "paraphrase", "neighborhood")]
    if all(parts):
        means = [fmean(part) for part in parts]
        score = 0.0 if min(means) == 0 else 3 / sum(1 / mean for mean in means)
        found.append({"protocol": "counterfact", "name": "score", "mean": score, "cases": min(map(len, parts))})
    return found + balanced(sound, "in_scope", True) + balanced(sound, "out_of_scope", False)


def unedited(methods):
    """What stands before the edits of each case, as if it stood behind them."""
    cases = {}
    for case in (case for cases in methods.values() for case in cases if case.get("error") is None):
        asked = [(row["kind"], row["class"], row["prompt"], row["given"] and row["target"]) for row in case["rows"]]
        cases.setdefault((case["id"], json.dumps([case["request"], asked])), case)

    def before(case):
        case = {**json.loads(json.dumps(case)), "texts": []}
        for row in case["rows"]:
            row["after"] = row["before"]
            if row["rival"]:
                row["rival"]["after"] = row["rival"]["before"]
        for answer in case.get("answers", []):
            answer["after"] = answer["before"]
        for pair in ("essence", "perplexity"):
            if case.get(pair):
                case[pair] = [case[pair][0]] * 2
        return case

    known = re.compile(r"locality(/.*|_same)?|drawdown(/.*)?|essence_rise|perplexity_drawdown|perplexity_ratio(/.*)?|topic")
    found = [figure for figure in figures([before(case) for case in cases.values()]) if figure["protocol"] != "efficiency"]
    for figure in found:
        if known.fullmatch(figure["name"]):
            figure["low"] = figure["high"] = None
    return found


def right_after(cases):
    """A sequence as it was right after each edit."""
    bare = {"answers": [], "texts": [], "essence": None, "perplexity": None}
    seen = [case for case in cases if case.get("error") is None and case.get("right_after")]
    found = figures([{**case, **bare, "rows": case["right_after"]} for case in seen])
    return [figure for figure in found if figure["protocol"] != "efficiency"]


def main(results):
    methods = read(results)
    rows = {"unedited": unedited(methods)}
    for name, cases in methods.items():
        rows[name], rows[name + ", right after"] = figures(cases), right_after(cases)
    found = [{"method": method, **figure} for method, figures in rows.items() for figure in figures]
    found.sort(key=lambda figure: (figure["method"], figure["protocol"], figure["name"]))
    print('{"figures": [\n' + ",\n".join(map(json.dumps, found)) + "\n]}")


if __name__ == "__main__":
    main(sys.argv[1])
