"""A recogniser for Microsoft Presidio: the model finds personal data of any kind that has a name."""

from collections.abc import Mapping
from typing import Any

from spanlake import Extractor
from spanlake.adapters.search import missing

try:
    from presidio_analyzer import AnalysisExplanation, LocalRecognizer, RecognizerResult
except ImportError as error:
    raise missing("presidio-analyzer", "presidio") from error

# Presidio's names, and what the model reads for them.
PERSONAL = {
    "PERSON": "person",
    "LOCATION": "location",
    "ORGANIZATION": "organization",
    "NRP": "nationality, religion or political group",
    "DATE_TIME": "date or time",
}


class SpanlakeRecognizer(LocalRecognizer):
    """Finds entities of Presidio's kinds. Add it to the registry of an `AnalyzerEngine`."""

    def __init__(
        self,
        extractor: Extractor,
        entities: Mapping[str, str] = PERSONAL,
        threshold: float | None = None,
        supported_language: str = "en",
        name: str = "SpanlakeRecognizer",
    ) -> None:
        """`entities` maps names of Presidio to what the model reads for them. Register one recogniser a language."""
        self.extractor = extractor
        self.entities = dict(entities)
        self.threshold = threshold
        super().__init__(
            supported_entities=list(self.entities),
            name=name,
            supported_language=supported_language,
            version=extractor.package.fingerprint[:12],
        )

    def load(self) -> None:
        """Does nothing: the extractor is loaded."""

    def analyze(self, text: str, entities: list[str], nlp_artifacts: Any = None) -> list[RecognizerResult]:
        """Returns the entities of these kinds; of all kinds where the list is empty."""
        wanted = {name: prompt for name, prompt in self.entities.items() if not entities or name in entities}
        if not wanted:
            return []
        [found] = self.extractor.extract([text], wanted, self.threshold)
        return [
            RecognizerResult(
                entity_type=entity.label,
                start=entity.start,
                end=entity.end,
                score=entity.score,
                analysis_explanation=AnalysisExplanation(
                    recognizer=self.name,
                    original_score=entity.score,
                    textual_explanation=f"The model read {wanted[entity.label]!r}",
                ),
                recognition_metadata={
                    RecognizerResult.RECOGNIZER_NAME_KEY: self.name,
                    RecognizerResult.RECOGNIZER_IDENTIFIER_KEY: self.id,
                },
            )
            for entity in found
        ]
