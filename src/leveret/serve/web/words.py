"""What the conversation's page says, in English and in Chinese."""

from __future__ import annotations

from dataclasses import dataclass

from leveret.serve.web.language import Language


@dataclass(frozen=True, kw_only=True)
class Words:
    """Every text of the page; `{}` is filled in."""

    intro_chat: str
    intro_base: str
    message: str
    message_hint: str
    send: str
    stop: str
    retry: str
    clear: str
    settings: str
    system: str
    system_hint: str
    temperature: str
    temperature_hint: str
    top_p: str
    top_p_hint: str
    top_k: str
    top_k_hint: str
    max_tokens: str
    max_tokens_hint: str
    repetition_penalty: str
    repetition_penalty_hint: str
    tools: str
    tools_hint: str
    empty: str
    nothing_asked: str
    cut_off: str
    no_tool: str
    error: str
    forgotten: str
    call: str
    runs: str


WORDS: dict[Language, Words] = {
    "en": Words(
        intro_chat="Everything runs on this server, and nobody else sees your conversation. A reload begins a new one.",
        intro_base="A base model: it continues what you write, each text by itself.",
        message="Message",
        message_hint="Enter sends, Shift+Enter begins a new line",
        send="Send",
        stop="Stop",
        retry="Retry",
        clear="Clear",
        settings="Settings",
        system="System message",
        system_hint="left empty: the model's own",
        temperature="Temperature",
        temperature_hint="0 takes the likeliest token, higher is more varied",
        top_p="Top p",
        top_p_hint="only the likeliest tokens that reach this share together; 1 is off",
        top_k="Top k",
        top_k_hint="only the k likeliest tokens; 0 is off",
        max_tokens="Max tokens",
        max_tokens_hint="the longest answer",
        repetition_penalty="Repetition penalty",
        repetition_penalty_hint="above 1: what was said becomes less likely",
        tools="Let it call its tools",
        tools_hint="calls are shown, nothing is done",
        empty="Say something to {}.",
        nothing_asked="Nothing was asked yet.",
        cut_off="cut off: the answer reached max tokens",
        no_tool="No tool fits.",
        error="Not answered",
        forgotten="The conversation has outgrown the model's context: its oldest turns are forgotten.",
        call="Calls {}",
        runs="Runs",
    ),
    "zh": Words(
        intro_chat="一切都在这台服务器上运行，别人看不到你的对话。刷新页面即开始新的对话。",
        intro_base="这是基座模型：它会续写你的文字，每段各自独立。",
        message="消息",
        message_hint="回车发送，Shift+回车换行",
        send="发送",
        stop="停止",
        retry="重试",
        clear="清除历史",
        settings="设置",
        system="系统消息",
        system_hint="留空则用模型自带的",
        temperature="温度 (temperature)",
        temperature_hint="0 总取最可能的 token，越大越多样",
        top_p="Top p",
        top_p_hint="只在概率之和达到此值的最可能 token 中采样；1 为关闭",
        top_k="Top k",
        top_k_hint="只在最可能的 k 个 token 中采样；0 为关闭",
        max_tokens="最多 token 数",
        max_tokens_hint="答案的最大长度",
        repetition_penalty="重复惩罚",
        repetition_penalty_hint="大于 1 时，说过的内容更不容易再出现",
        tools="允许调用工具",
        tools_hint="只显示调用，不会真的执行",
        empty="对 {} 说点什么吧。",
        nothing_asked="还没有提过问题。",
        cut_off="已截断：答案达到了最多 token 数",
        no_tool="没有合适的工具。",
        error="没能回答",
        forgotten="对话超出了模型的上下文：最早的几轮已被忘掉。",
        call="调用 {}",
        runs="训练记录",
    ),
}
