"""What the simulator's model says to the prompts of `doctor --live`, so that there is every kind of place to cut at."""

from __future__ import annotations

from typing import Any

from activities.continuation_check import TASKS
from providers.mistral.probe import PROBES
from tests.support.simulator_process import SimulatorProcess

ANSWERS = {
    "prose": "The keeper's lighthouse stood, alone and unforgettable, above the harbour. Her dog barked at the "
    "thunder, and she counted the seconds between lightning and noise until the storm was gone. In the morning "
    "everything was quiet, and the extraordinary silence lasted until noon.",
    "code": "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n"
    "        self.items.append(item)\n\n    def pop(self):\n        return self.items.pop()\n\n"
    "    def show(self):\n        for item in self.items:\n            print(item)\n",
    "script": "Привет, мир! 👩‍🚀 Сегодня в Лионе 23 °C, завтра дождь 🌧️. 東京は晴れです。 "
    "La famille 👨‍👩‍👧 va à la plage 🏖️.",
    "table": "| Animal | Legs | Sound |\n| --- | --- | --- |\n| Dog | 4 | woof |\n| Duck | 2 | quack |\n"
    "| Spider | 8 | none |",
    "list": "1. Apple, crisp and sweet\n2. Banana, soft\n3. Cherry, dark red\n4. Fig, full of seeds\n"
    "5. Grape, for wine\n",
    "numbers": ", ".join(map(str, range(9995, 10031))),
    "JSON": '{\n  "name": "Ada",\n  "age": 36,\n  "address": {\n    "street": "Elm Street 5"\n  },\n  "hobbies": [\n'
    '    "chess",\n    "sailing"\n  ]\n}',
}


def knows_answers(sim: SimulatorProcess, **script: Any) -> None:
    """Script what doctor asks: the lists of the measurement, and the answers that are judged."""
    sim.script(match="Count from one", **script)
    for probe in PROBES:
        sim.script(match=probe.prompt, **{"text": f"{probe.list}{probe.rest}, and so on"} | script)
    for task in TASKS:
        sim.script(match=task.prompt, **{"text": ANSWERS[task.name]} | script)
