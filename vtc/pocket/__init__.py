"""pocket: a miniature visual question answering world that ships with vtc.

Scenes are drawn, questions are asked about them, and a genuine ``LlavaForConditionalGeneration`` of about two million
parameters is trained on them, so that every method can be trained, scored and profiled on a laptop. It is a
miniature: it shows the ORDER of things, never the numbers of a real LVLM.
"""
