// "Finish now" on Optimize Tokens: ends the run at this iteration; what it has so far goes on through the workflow.
import { app } from "../../scripts/app.js";
import { api } from "../../scripts/api.js";

async function finish(node) {
  const answer = await api.fetchApi("/tokenopt/finish", {
    method: "POST",
    body: JSON.stringify({ node: String(node.id) }),
  });
  const { finishing = [] } = answer.ok ? await answer.json() : {};
  if (!finishing.length) {
    app.extensionManager?.toast?.add({
      severity: "info",
      summary: "Finish now",
      detail: "This node is not running.",
      life: 3000,
    });
  }
}

app.registerExtension({
  name: "tokenopt.FinishNow",
  nodeCreated(node) {
    if (node.comfyClass !== "TokenOptOptimize") return;
    const button = node.addWidget("button", "Finish now", null, () => finish(node), { serialize: false });
    button.tooltip = "Ends the run at this iteration and passes on the averaged tokens so far.";
    // neither the button nor what stands below it, previews and notes of a run, is saved
    button.serialize = false;
    const { onSerialize } = node;
    node.onSerialize = function (saved) {
      onSerialize?.call(this, saved);
      saved.widgets_values?.splice(this.widgets.indexOf(button));
    };
  },
});
