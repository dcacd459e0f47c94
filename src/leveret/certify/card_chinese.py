"""The Chinese part of the card: the same facts, shorter, for readers who do not read English."""

from __future__ import annotations

from collections.abc import Sequence

from leveret.certify.card_facts import ModelFacts, StageFacts, number
from leveret.certify.card_pieces import table
from leveret.certify.certificate import Certificate
from leveret.certify.references import short_form
from leveret.certify.thresholds import PairKind

KINDS: dict[PairKind, str] = {
    "exact": "应完全一致",
    "16-bit": "16 位精度",
    "int8": "8 位量化",
    "int4": "4 位量化",
    "int3": "3 位量化",
    "int2": "2 位量化",
}


def chinese_section(title: str, model: ModelFacts, stages: Sequence[StageFacts], certificate: Certificate) -> str:
    """Everything under the heading 中文说明."""
    parts = ["## 中文说明", _what(model), "### 结构", _architecture(model)]
    if stages:
        parts += ["### 训练过程", _stages(stages)]
    parts += ["### 一致性证书", _certificate(certificate)]
    parts += ["### 使用方法", f"```sh\nleveret chat {title}\nleveret serve {title}   # 兼容 OpenAI 接口\n```"]
    parts += ["### 局限", _limits(model, stages, certificate)]
    return "\n\n".join(parts)


def _what(model: ModelFacts) -> str:
    text = f"{model.config.family} 结构的语言模型，共 {number(model.parameters.total)} 个参数"
    if model.parameters.active != model.parameters.total:
        text += f"，每个词元使用其中 {number(model.parameters.active)} 个"
    if model.quantization:
        text += f"，线性层以 {model.quantization.bits} 位存储"
    text += f"，文件大小 {model.bytes_on_disk / 1e6:,.1f} MB。"
    if model.tools:
        text += f"可调用 {len(model.tools)} 个函数：{'、'.join(f'`{name}`' for name in model.tools)}。"
    return text


def _architecture(model: ModelFacts) -> str:
    config = model.config
    rows = [
        ("层数", number(config.num_hidden_layers)),
        ("隐藏维度", number(config.hidden_size)),
        ("前馈维度", number(config.intermediate_size)),
        ("查询头 / 键值头", f"{config.num_attention_heads} / {config.num_key_value_heads}"),
        ("词表大小", number(config.vocab_size)),
        ("上下文长度", f"{config.max_position_embeddings:,} 个词元"),
        ("数值格式", model.dtype),
    ]
    return table(("项目", "数值"), rows)


def _stages(stages: Sequence[StageFacts]) -> str:
    """Each stage with its command; settings and results are the tables of the English part."""
    lines = [f"* {stage.name}" + (f"（`leveret {stage.command}`）" if stage.command else "") for stage in stages]
    return "各阶段的设置、结果与评测得分见上文英文表格。\n\n" + "\n".join(lines)


def _certificate(certificate: Certificate) -> str:
    rows = [
        (f"`{short_form(item.second)}`", KINDS[item.kind], "通过" if item.passed else "**未通过**")
        for item in certificate.comparisons
    ]
    first = short_form(certificate.forms[0]["name"])
    return f"以下各形式均与 `{first}` 比较（词元编号、输出概率、贪心续写、困惑度）：\n\n" + table(
        ("形式", "类别", "结论"), rows
    )


def _limits(model: ModelFacts, stages: Sequence[StageFacts], certificate: Certificate) -> str:
    limits = []
    if model.parameters.total < 10**9:
        limits.append("参数量小，世界知识有限：不要把它的陈述当作事实；执行它发出的调用之前请先核对。")
    if not any(stage.scores for stage in stages):
        limits.append("没有记录任何评测，质量未知。")
    else:
        limits.append("得分只适用于上文列出的评测集，换一种说法或主题效果可能更差。")
    if model.quantization:
        limits.append("量化会改变部分回答，幅度见证书。")
    if not certificate.passed:
        limits.append("证书未通过：在查明差异之前请勿发布。")
    limits.append("没有做过安全训练，也没有有害输出测试的记录。")
    return "\n".join(f"* {limit}" for limit in limits)
