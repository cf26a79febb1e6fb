from importlib import import_module
from tortoise import migrations
from tortoise import fields

AddFilled = import_module("models.migrations.0002_engine").AddFilled


class Migration(migrations.Migration):
    dependencies = [("models", "0008_rounds")]

    initial = False

    operations = [
        AddFilled(
            model_name="Worker",
            name="lease_seconds",
            field=fields.FloatField(default=30),
        ),
    ]
