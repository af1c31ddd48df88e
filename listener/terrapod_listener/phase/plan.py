"""The plan phase: plan, read the plan back, send what was made of it."""

import asyncio

from terrapod_listener.engine import argv, schemas, workdir
from terrapod_listener.phase.commands import Commands
from terrapod_listener.phase.context import Context
from terrapod_listener.phase.delivery import Delivery
from terrapod_listener.phase.logs import LogSpool
from terrapod_listener.phase.outcomes import Failed
from terrapod_listener.phase.preparation import SHOW_S, Prepared
from terrapod_listener.supervise import statefile
from terrapod_shared import wire


class Plan:
    """One plan, once its folder is prepared."""

    def __init__(self, context: Context, commands: Commands, delivery: Delivery, log: LogSpool) -> None:
        self._context, self._commands, self._delivery, self._log = context, commands, delivery, log
        self._schemas = schemas.Schemas(context.home / "schemas")

    async def run(self, ready: Prepared) -> wire.Report:
        """The report of a plan that ended well. Raises Failed, Canceled, HookFailed, NotWhole, and what the server answers."""
        self._commands.step = "plan"
        work, module = self._context.work, ready.module
        plan_file, generated = self._context.folder / "plan", module / "generated.tf"
        words = argv.plan_argv(work.options, str(plan_file), ready.var_file, str(generated))
        async with self._commands.hooks.around("plan", module, self._log.write) as step:
            step.code = code = await self._commands.run(words, self._log, work.limits.plan_s)
        if code:
            raise Failed(f"{work.engine.tool} plan failed with exit code {code}")
        counts = await self._read_and_send(ready)
        return wire.Report(
            phase="plan",
            status="planned",
            exit_code=code,
            has_changes=counts.has_changes,
            resource_additions=counts.additions,
            resource_changes=counts.changes,
            resource_destructions=counts.destructions,
            resource_imports=counts.imports,
            generated_configuration=counts.generated,
        )

    async def _read_and_send(self, ready: Prepared) -> argv.Counts:
        """Plan file, plan JSON, schemas and lock file are on the server when this returns."""
        self._commands.step = "show"
        context, folder = self._context, self._context.folder
        plan_file, lock = folder / "plan", ready.module / ".terraform.lock.hcl"
        # what we write is out of the run's reach, and what the run has written is read without following its links
        shown, answer, cut = (context.record.folder / name for name in ("plan.json", "answer.json", "schemas.json"))
        locked = await asyncio.to_thread(workdir.read_below, folder, lock)
        kept_answer = await asyncio.to_thread(self._schemas.place, context.work, locked or b"")
        is_known = await asyncio.to_thread(kept_answer.is_file)
        reads = [self._commands.run(["show", "-json", str(plan_file)], self._log, SHOW_S, shown)]
        if not is_known:
            reads.append(self._commands.run(["providers", "schema", "-json"], self._log, SHOW_S, answer))
        if any(await asyncio.gather(*reads)):
            raise Failed("the plan could not be read back")
        counts = await asyncio.to_thread(schemas.digest, shown, kept_answer if is_known else answer, cut)
        if not is_known:
            await asyncio.to_thread(self._schemas.keep, answer, kept_answer)
        self._commands.step = "upload"
        uploads = {"plan-file": plan_file, "plan-json": shown, "schemas": cut}
        if locked is not None:
            uploads["lock-file"] = lock
        for name, path in uploads.items():
            if path.is_relative_to(folder):
                with await asyncio.to_thread(statefile.open_below, folder, path):
                    pass
            await self._delivery.artifact(name, path)
        return counts
