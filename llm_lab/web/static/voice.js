// Speaking and listening. Recordings go only to the server on this machine, which transcribes them with Whisper.
//
//   const microphone = createMicrophone({ onText, onState, onError });
//   microphone.toggle();   // start, or stop and transcribe; .cancel() drops the recording; .state
//     onState(state)       // "idle", "asking" (for permission), "recording", "transcribing"
//     onText(text)         // the transcript; "" for silence
//     onError(error)       // error.message is written for the user
//   await speak(text, { engine: "browser" });  // or "piper"; resolves when it has ended or was stopped; throws Error
//   stopSpeaking();
//   await voices();        // [{engine, name, language, available, why}]
//   element.append(voiceSettings());           // engine, voice, Whisper model

import { LabError, api, el, stored, toast } from "./lab.js";

const RATE = 16000; // the sample rate that Whisper takes
const LONGEST_SECONDS = 120;
const NAMES = { engine: "voice.engine", voice: "voice.name", model: "voice.model" };

const settings = Object.fromEntries(Object.entries(NAMES).map(([key, name]) => [key, stored(name)]));

function set(key, value) {
  settings[key] = stored(NAMES[key], value);
}

// --- input

/** A microphone: records until it is stopped, then returns the text. */
export function createMicrophone({ onText, onState = () => {}, onError = () => {} }) {
  let state = "idle";
  let stream, recorder, timer;
  let attempt = 0; // so that a canceled recording does not end in a text

  function become(next) {
    state = next;
    onState(next);
  }

  function release() {
    clearTimeout(timer);
    for (const track of stream?.getTracks() ?? []) track.stop();
    stream = recorder = undefined;
  }

  function fail(error) {
    release();
    become("idle");
    onError(error);
  }

  async function start() {
    if (state !== "idle") return;
    stopSpeaking(); // it would hear itself
    const mine = ++attempt;
    if (!navigator.mediaDevices?.getUserMedia || !window.MediaRecorder) {
      onError(new Error("This browser does not give this page access to a microphone. Open it at 127.0.0.1 or localhost."));
      return;
    }
    become("asking");
    try {
      const opened = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
      if (mine !== attempt) {
        for (const track of opened.getTracks()) track.stop();
        return;
      }
      stream = opened;
      const pieces = [];
      recorder = new MediaRecorder(stream);
      recorder.addEventListener("dataavailable", (event) => event.data.size && pieces.push(event.data));
      recorder.addEventListener("stop", () => finish(mine, new Blob(pieces, { type: recorder?.mimeType })));
      recorder.start();
      timer = setTimeout(stop, (LONGEST_SECONDS - 1) * 1000);
      become("recording");
    } catch (error) {
      if (mine === attempt) fail(new Error(whyNoMicrophone(error)));
    }
  }

  async function finish(mine, recording) {
    release();
    if (mine !== attempt) return;
    become("transcribing");
    try {
      const wav = toWav(await resample(await recording.arrayBuffer()));
      const query = settings.model ? `?model=${encodeURIComponent(settings.model)}` : "";
      const { whisper, downloaded } = await api(`/api/voice${query}`);
      if (!downloaded) toast(`${whisper} is downloaded first. This takes a while, but only the first time.`);
      const { text } = await api(`/api/voice/listen${query}`, { body: new Blob([wav], { type: "audio/wav" }) });
      if (mine !== attempt) return;
      become("idle");
      onText(text);
    } catch (error) {
      if (mine === attempt) fail(error);
    }
  }

  function stop() {
    if (state === "recording" && recorder?.state === "recording") recorder.stop();
  }

  function cancel() {
    if (state === "idle") return;
    attempt++;
    if (recorder?.state === "recording") recorder.stop();
    release();
    become("idle");
  }

  return {
    start,
    stop,
    cancel,
    toggle: () => (state === "recording" ? stop() : state === "idle" ? start() : cancel()),
    get state() {
      return state;
    },
  };
}

function whyNoMicrophone(error) {
  if (error.name === "NotAllowedError") return "The microphone is not allowed. Allow it for this page in the browser.";
  if (error.name === "NotFoundError") return "There is no microphone.";
  if (error.name === "NotReadableError") return "The microphone is used by another program.";
  return `The microphone can't be used: ${error.message}`;
}

/** A recording in any format of the browser, converted to samples: one channel, 16 kHz. */
async function resample(recording) {
  const context = new AudioContext();
  try {
    const audio = await context.decodeAudioData(recording);
    const offline = new OfflineAudioContext(1, Math.max(1, Math.round(audio.duration * RATE)), RATE);
    const source = offline.createBufferSource();
    source.buffer = audio;
    source.connect(offline.destination);
    source.start();
    return (await offline.startRendering()).getChannelData(0);
  } catch {
    throw new Error("Nothing was recorded. Try again.");
  } finally {
    context.close();
  }
}

/** Samples as a WAV file: 16 bits, one channel, 16 kHz. */
function toWav(samples) {
  const bytes = new DataView(new ArrayBuffer(44 + samples.length * 2));
  const text = (offset, value) => [...value].forEach((sign, index) => bytes.setUint8(offset + index, sign.charCodeAt(0)));
  text(0, "RIFF");
  bytes.setUint32(4, 36 + samples.length * 2, true);
  text(8, "WAVEfmt ");
  bytes.setUint32(16, 16, true);
  bytes.setUint16(20, 1, true); // PCM
  bytes.setUint16(22, 1, true); // channels
  bytes.setUint32(24, RATE, true);
  bytes.setUint32(28, RATE * 2, true);
  bytes.setUint16(32, 2, true);
  bytes.setUint16(34, 16, true);
  text(36, "data");
  bytes.setUint32(40, samples.length * 2, true);
  samples.forEach((sample, index) => bytes.setInt16(44 + index * 2, Math.max(-1, Math.min(1, sample)) * 32767, true));
  return bytes.buffer;
}

// --- output

let stopCurrent = () => {};

/** Speak a text. Resolves when it has ended or was stopped; throws an Error with a message for the user. */
export async function speak(text, { engine = settings.engine || "browser" } = {}) {
  stopSpeaking();
  if (!text.trim()) return;
  await (engine === "piper" ? speakWithPiper(text) : speakWithBrowser(text));
}

/** Stop speaking. */
export function stopSpeaking() {
  stopCurrent();
  stopCurrent = () => {};
}

async function speakWithBrowser(text) {
  const own = await browserVoices();
  const voice = own.find((one) => one.name === settings.voice) ?? own.find((one) => one.default) ?? own[0];
  if (!voice) throw new Error("This browser has no local voice. Choose Piper in the settings.");
  const said = new SpeechSynthesisUtterance(text);
  said.voice = voice;
  said.lang = voice.lang;
  await new Promise((resolve, reject) => {
    said.addEventListener("end", resolve);
    said.addEventListener("error", (event) =>
      ["canceled", "interrupted"].includes(event.error) ? resolve() : reject(new Error(`No voice: ${event.error}`)),
    );
    stopCurrent = () => {
      speechSynthesis.cancel();
      resolve();
    };
    speechSynthesis.speak(said);
  });
}

async function speakWithPiper(text) {
  const leave = new AbortController();
  let end = () => {};
  stopCurrent = () => {
    leave.abort();
    end();
  };
  let address;
  try {
    const response = await fetch("/api/voice/speak", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ text }),
      signal: leave.signal,
    });
    if (!response.ok) throw new LabError((await response.json()).problems, response.status);
    address = URL.createObjectURL(await response.blob());
    if (leave.signal.aborted) return;
    const audio = new Audio(address);
    await new Promise((resolve, reject) => {
      end = () => {
        audio.pause();
        resolve();
      };
      audio.addEventListener("ended", resolve);
      audio.addEventListener("error", () => reject(new Error("The speech can't be played.")));
      audio.play().catch(reject);
    });
  } catch (error) {
    if (error.name !== "AbortError") throw error;
  } finally {
    if (address) URL.revokeObjectURL(address);
  }
}

/** The browser's voices that work on this machine: others send the text to the browser vendor's server. */
async function browserVoices() {
  if (!window.speechSynthesis) return [];
  const local = () => speechSynthesis.getVoices().filter((voice) => voice.localService);
  if (!local().length) {
    // Browsers load their voices only after they are first requested.
    await new Promise((resolve) => {
      speechSynthesis.addEventListener("voiceschanged", resolve, { once: true });
      setTimeout(resolve, 500);
    });
  }
  return local();
}

/** All voices: the browser's own, and Piper; why: the reason if one is not available. */
export async function voices() {
  const [own, { piper }] = await Promise.all([browserVoices(), api("/api/voice")]);
  return [
    ...own.map(({ name, lang }) => ({ engine: "browser", name, language: lang, available: true, why: null })),
    { engine: "piper", name: piper.voice, language: null, available: piper.why === null, why: piper.why },
  ];
}

/** The settings of voice: an element with labels, for a dialog or a panel. */
export function voiceSettings() {
  const voice = el("select", { id: "voice-name" });
  const help = el("p.help", {});
  const model = el("input", { id: "voice-model", type: "text", value: settings.model, autocomplete: "off" });
  const modelHelp = el(
    "p.help",
    {},
    "A folder, or a name on the Hub. It is downloaded once; recordings stay on this machine.",
  );
  voice.addEventListener("change", () => {
    const [engine, ...name] = voice.value.split(":");
    set("engine", engine);
    set("voice", name.join(":"));
  });
  model.addEventListener("change", () => set("model", model.value.trim()));
  (async () => {
    const [all, { whisper }] = await Promise.all([voices(), api("/api/voice")]);
    model.placeholder = whisper;
    const none = !all.some(({ available }) => available);
    voice.replaceChildren(
      ...(none ? [el("option", { value: "" }, "None on this machine")] : []),
      ...all.map(({ engine, name, language, available }) =>
        el(
          "option",
          { value: `${engine}:${name ?? ""}`, disabled: !available },
          engine === "piper" ? `Piper${name ? `: ${name}` : ""}` : `${name} (${language})`,
        ),
      ),
    );
    const piper = all.at(-1);
    const own = all.length > 1 ? "" : "This browser has no local voice. ";
    help.textContent = piper.available ? "" : `${own}Piper: ${piper.why.replace(/^piper: /, "")}`;
    const wanted = `${settings.engine || "browser"}:${settings.voice}`;
    if (all.some(({ engine, name }) => `${engine}:${name ?? ""}` === wanted)) voice.value = wanted;
    else if (settings.engine === "piper" && piper.available) voice.value = `piper:${piper.name ?? ""}`;
  })().catch((error) => (help.textContent = error.message));
  return el(
    "div.stack.voice-settings",
    {},
    el("div.field", {}, el("label", { for: voice.id }, "Voice"), voice, help),
    el("div.field", {}, el("label", { for: model.id }, "Whisper model"), model, modelHelp),
  );
}
